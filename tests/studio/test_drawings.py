"""The commands that pages show and start must be understood by the command line, and mean what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moongate import cli
from moongate.errors import OptionError
from moongate.studio.commands import Command
from moongate.studio.drawings import (
    Chosen,
    checked_prompt,
    edit_command,
    generate_command,
    merge_command,
    redraw_command,
)
from moongate.studio.pictures import Picture, Used

PICTURE = Picture(
    file=Path("x.png"), changed=1, width_px=64, height_px=32, prompt="a <bear> bear", seed=5, model="tiny",
    concepts=(Used(file="bear.safetensors", hash="0", strength=0.8),), together="add", steps=20, guidance=3.5,
    scheduler="ddim", negative_prompt="blurred", regions=("<bear> bear=0,0,0.5,1",),
)  # fmt: skip
BEAR = Chosen(file=Path("bear.safetensors"), strength=0.8)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command up to its start, and return it with its options."""

    def parse(command: Command) -> Any:
        called: list[Any] = []
        for name in ("Generate", "Merge", "Edit"):
            monkeypatch.setattr(getattr(cli, name), "__call__", lambda self, _console: called.append(self))
        cli.main(list(command.words))
        return called[0]

    return parse


def test_the_command_that_draws_is_understood(parsed: Any) -> None:
    regions = ["<bear> bear=0,0,0.5,1", "<rex> dog=0.5,0,1,1"]
    chosen = [BEAR, Chosen(file=Path("dog.safetensors"))]
    command = generate_command(["a", "b c"], chosen, out=Path("o"), seed=3, count=2, together="add", regions=regions)
    options = parsed(command)
    assert options.prompts == ("a", "b c")
    assert options.concept == (("bear.safetensors:0.8",), ("dog.safetensors",))
    assert (options.together, options.seed, options.count, options.out) == ("add", 3, 2, Path("o"))
    assert options.region == tuple((region,) for region in regions)


def test_the_command_that_merges_takes_strengths(parsed: Any) -> None:
    options = parsed(merge_command([BEAR, Chosen(file=Path("dog.safetensors"))], Path("both.safetensors")))
    assert options.files == ("bear.safetensors:0.8", "dog.safetensors")
    assert options.out == Path("both.safetensors")


def test_a_picture_is_drawn_again_as_it_was(parsed: Any) -> None:
    options = parsed(redraw_command(PICTURE, [BEAR], out=Path("o"), model="pocket"))
    assert (options.prompts, options.seed, options.count) == (("a <bear> bear",), 5, 1)
    assert (options.drawing.steps, options.drawing.guidance, options.drawing.scheduler) == (20, 3.5, "ddim")
    assert (options.width, options.height, options.negative_prompt) == (64, 32, "blurred")
    assert options.region == (("<bear> bear=0,0,0.5,1",),)
    assert options.model.model is None
    assert parsed(redraw_command(replace(PICTURE, concepts=()), [], out=Path("o"), model="tiny")).model.model == "tiny"
    unnamed = replace(PICTURE, concepts=(), model="")
    assert parsed(redraw_command(unnamed, [], out=Path("o"), model="tiny")).model.model == "tiny"


def test_a_model_that_only_a_picture_names_is_not_loaded() -> None:
    strange = replace(PICTURE, concepts=(), model="stranger/model")
    for command in (redraw_command, lambda *_, **more: edit_command(strange, "b", [], **more)):
        with pytest.raises(
            OptionError, match="drawn with the model 'stranger/model', and this studio draws with 'tiny'"
        ):
            command(strange, [], out=Path("o"), model="tiny")


def test_the_words_of_a_region_and_a_negative_prompt_are_no_options(parsed: Any) -> None:
    strange = replace(PICTURE, regions=("--model=x=0,0,1,1",), negative_prompt="--model")
    options = parsed(redraw_command(strange, [BEAR], out=Path("o"), model="y"))
    assert options.model.model is None
    assert options.negative_prompt == "--model"
    assert options.region == (("--model=x=0,0,1,1",),)


def test_regions_with_prompts_of_their_own_cannot_be_drawn_again_here() -> None:
    with pytest.raises(OptionError, match="--regions FILE"):
        redraw_command(replace(PICTURE, has_region_texts=True), [BEAR], out=Path("o"), model="pocket")


def test_an_edit_begins_with_the_same_seed_and_steps(parsed: Any) -> None:
    options = parsed(edit_command(PICTURE, "a <bear> bear at night", [BEAR], out=Path("o"), model="pocket"))
    assert options.words == ("a <bear> bear", "a <bear> bear at night")
    assert (options.seed, options.steps, options.scheduler, options.strength) == (5, 20, "ddim", 0.8)
    assert options.concept == Path("bear.safetensors")
    with pytest.raises(OptionError, match="an edit takes one"):
        edit_command(PICTURE, "b", [BEAR, BEAR], out=Path("o"), model="pocket")


def test_an_edit_is_not_drawn_from_its_prompt_alone() -> None:
    edited = replace(PICTURE, source="a bear")
    for command in (redraw_command, lambda *_, **more: edit_command(edited, "b", [], **more)):
        with pytest.raises(OptionError, match="is an edit of 'a bear'"):
            command(edited, [BEAR], out=Path("o"), model="pocket")


def test_what_would_be_read_as_an_option_is_no_prompt() -> None:
    assert checked_prompt(" a\n dog ") == "a dog"
    for wrong in ("--out", "", " ", "x" * 20_001):
        with pytest.raises(OptionError, match="The prompt"):
            checked_prompt(wrong)
    with pytest.raises(OptionError, match="from 1 to 64"):
        generate_command(["a"], [], out=Path("o"), seed=0, count=65)
