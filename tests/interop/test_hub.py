"""Model cards. The upload is tested through the command, in tests/cli/test_convert.py."""

import dataclasses
from pathlib import Path

import yaml

from conftest import make_tiny_model
from making import make_concept
from moongate.backbone import Backbone
from moongate.concept import SubjectRecord
from moongate.interop import FORMATS, card_prompts, model_card


def test_the_front_matter_of_a_card_is_yaml_whatever_its_texts_hold(tiny: Backbone) -> None:
    prompt = 'photo of a "<bear>": bear # not a comment'
    subjects = (SubjectRecord(category="bear", token="<bear>", prompts=(prompt,)),)
    concept = dataclasses.replace(make_concept(tiny), subjects=subjects, base="someone/model")
    card = model_card(concept, FORMATS["lora"], title="bear", license="on: the moon")
    front = yaml.safe_load(card.split("---")[1])
    assert front == {
        "base_model": "someone/model",
        "instance_prompt": prompt,
        "library_name": "diffusers",
        "license": "on: the moon",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "custom-diffusion", "moongate", "lora"],
    }


def test_a_card_of_a_base_in_a_folder_names_no_path(tiny: Backbone) -> None:
    concept = dataclasses.replace(make_concept(tiny), base="/home/someone/models/mine")
    card = model_card(concept, FORMATS["kohya"], title="bear")
    assert "base_model" not in card
    assert "- Base: mine\n" in card
    assert "/home/someone" not in card


def test_the_card_for_two_text_encoders_loads_both_rows(tmp_path: Path) -> None:
    xl = Backbone.load(make_tiny_model(tmp_path / "xl", seed=0, family="sdxl"), device="cpu")
    card = model_card(make_concept(xl), FORMATS["lora"], title="bear")
    assert 'rows["clip_g"], token="<bear>", text_encoder=pipeline.text_encoder_2' in card


def test_sample_prompts_show_each_subject_in_each_place(tiny: Backbone) -> None:
    concept = make_concept(tiny, tokens=("<bear>", "<chair>"))
    assert card_prompts(concept, 3) == [
        "photo of a <bear> bear",
        "photo of a <chair> bear",
        "photo of a <bear> bear on the beach",
    ]
