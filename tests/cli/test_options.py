import dataclasses

import pytest

from command_line import fails
from conftest import FAMILIES  # noqa: F401
from moongate.cli.options import DrawingOptions
from moongate.sampling import SampleOptions


def test_drawing_options_have_the_defaults_of_the_library() -> None:
    assert DrawingOptions().sample_options() == SampleOptions()
    own = {"negative_prompt", "width_px", "height_px"}
    assert {field.name for field in dataclasses.fields(SampleOptions)} - own == {
        field.name for field in dataclasses.fields(DrawingOptions)
    }


@pytest.mark.parametrize(
    ("out", "advised"),
    [("bear.ckpt", "bear.safetensors"), ("noext", "noext.safetensors"), ("my.bear", "my.bear.safetensors")],
)
@pytest.mark.parametrize(
    "words", ["train photos --category bear", "merge a b", "compress a", "convert a --to moongate"]
)
def test_a_concept_gets_the_ending_by_which_programs_know_its_format(
    words: str, out: str, advised: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, *words.split(), "--out", out)
    assert f"A concept is a .safetensors file, but --out is {out}. Give --out {advised}." in message
