import dataclasses

from conftest import FAMILIES  # noqa: F401
from moongate.cli.options import DrawingOptions
from moongate.sampling import SampleOptions


def test_drawing_options_have_the_defaults_of_the_library() -> None:
    assert DrawingOptions().sample_options() == SampleOptions()
    own = {"negative_prompt", "width_px", "height_px"}
    assert {field.name for field in dataclasses.fields(SampleOptions)} - own == {
        field.name for field in dataclasses.fields(DrawingOptions)
    }
