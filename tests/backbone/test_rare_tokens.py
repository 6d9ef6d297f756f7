import pytest
import torch

from moongate.backbone import Backbone, Settings
from moongate.backbone.rare_tokens import latest, suggest
from moongate.training.method import METHODS, initial_rows


def spelled(tiny: Backbone, token: int) -> str:
    return tiny.tokenizer.convert_ids_to_tokens(token)


def test_tokens_are_suggested_by_the_papers_rule(tiny: Backbone) -> None:
    often, rare, never = ["photo dog"] * 11, ["cat chair!"] * 6 + ["cat"] * 4, ["red"] * 4
    found = suggest(tiny, [*often, *rare, *never, "a a a a a a"])
    assert [(token.text, token.count) for token in found] == [("chair", 6), ("cat", 10)]
    assert [spelled(tiny, token.id) for token in found] == ["chair</w>", "cat</w>"]


def test_parts_of_other_tokens_and_what_is_no_word_are_left_out(tiny: Backbone) -> None:
    """The "a" is a part of "cat" and "in" of "drawing"; "!" is no letter."""
    found = {token.text for token in suggest(tiny, ["a ! in bear"] * 5)}
    assert "bear" in found
    assert not found & {"a", "!", "in"}


def test_words_learned_last_come_first(tiny: Backbone) -> None:
    words = [spelled(tiny, token) for token in latest(tiny)]
    assert words[0] == "small</w>"
    assert words.index("drawing</w>") < words.index("photo</w>")
    assert "a</w>" not in words


def test_more_tokens_than_are_listed_begin_as_words_learned_late(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "settings", Settings())
    monkeypatch.setitem(vars(tiny), "rare_tokens", (20,))
    rows = initial_rows(tiny, {"<a>": "bear", "<b>": "cat"}, METHODS["custom-diffusion"], torch.Generator())
    assert (rows["<a>"] == tiny.token_row(20)).all()
    assert (rows["<b>"] == tiny.token_row(latest(tiny)[0])).all()
