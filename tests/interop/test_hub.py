"""Model cards. The upload is tested through the command, in tests/cli/test_convert.py."""

import ast
import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import make_tiny_model
from making import make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import SubjectRecord
from moongate.interop import FORMATS, WriteOptions, card_prompts, model_card
from moongate.interop.tokens import file_stems


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


@pytest.mark.parametrize("to", ["lora", "diffusers"])
def test_the_python_of_a_card_gives_diffusers_the_text_that_moongate_reads(
    each: Backbone, family_folder: Path, tmp_path: Path, to: str
) -> None:
    """The pooled text of SDXL too, which plain diffusers takes at the new token."""
    concept = make_concept(each)
    interop.write(concept, tmp_path / "bear", to=to, options=WriteOptions(base=each))
    card = model_card(concept, FORMATS[to], title="bear")
    code = card.split("```python")[1].split("```")[0].replace("FOLDER", str(tmp_path / "bear"))
    *lines, draw = code.replace("BASE", str(family_folder)).strip().splitlines()
    assert draw.startswith("pipeline(")
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    pipeline, prompt = names["pipeline"], card_prompts(concept, 1)[0]
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    features, _, *pooled = pipeline.encode_prompt(prompt, **options)
    with concept.applied(each):
        ours = each.encode_text([prompt])
    assert torch.allclose(features, ours.features, atol=1e-5)
    if len(each.token_widths) > 1:
        assert torch.allclose(pooled[0], ours.pooled, atol=1e-5)


def test_words_of_a_file_are_quoted_in_the_examples_of_a_card(tiny: Backbone) -> None:
    token, category = '<b">', 'dog").images; import os; os.system("x") # `rm` $(rm) \'; rm\n```\n# no heading'
    subjects = (SubjectRecord(category=category, token=token, prompts=(f"photo of a {token} {category}",)),)
    concept = dataclasses.replace(make_concept(tiny, tokens=(token,)), subjects=subjects, base="<img src=x>")
    card = model_card(concept, FORMATS["lora"], title="[x](y)\n# z", pictures=[(category, "0.png")])
    python = card.split("```python\n")[1].split("\n```")[0]
    calls = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
    assert not [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Import)]
    assert "os.system" not in [ast.unparse(call.func) for call in calls]
    console = card.split("```console\n")[1].split("\n```")[0]
    assert shlex.split(console)[:2] == ["moongate", "generate"]
    assert len(shlex.split(console)) == 7
    assert not any(line.startswith(("# no heading", "# z")) for line in card.splitlines())
    assert "<img" not in card.replace("\\<img", "")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../up", "a\0b", "x" * 400, "<../up>", "..", "", "C:\\x", "<a/b>"])
def test_no_name_of_a_file_becomes_a_path(name: str) -> None:
    (stem,) = file_stems([name]).values()
    assert Path(stem).name == stem
    assert not {"\\", "\0", "."} & set(stem)
    assert len(stem.encode()) <= 200


def test_a_card_of_a_base_in_a_folder_of_windows_names_no_path(tiny: Backbone) -> None:
    concept = dataclasses.replace(make_concept(tiny), base=r"C:\Users\someone\models\mine")
    card = model_card(concept, FORMATS["kohya"], title="bear")
    assert "- Base: mine\n" in card
    assert "someone" not in card
