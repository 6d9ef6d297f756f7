"""The stages of pretraining, one command each; `recipe/README.md` gives their order and what they cost."""
