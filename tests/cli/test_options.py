import dataclasses
import errno
from pathlib import Path

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


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can make a file")
@pytest.mark.parametrize(
    "words",
    [
        "train photos --category bear --out {}/bear.safetensors",
        "train photos --category bear --run {}",
        "generate dog --concept a.safetensors --out {}",
        "merge a.safetensors --out {}/bear.safetensors",
        "merge a.safetensors --check --report {}",
        "compress a.safetensors --out {}/bear.safetensors",
        "convert a.safetensors --to moongate --out {}/bear.safetensors",
        "convert a.safetensors --to kohya --out {}",
        "convert a.safetensors --to adobe --out {}/delta.bin",
        "evaluate a.safetensors --out {}",
        "analyze weights a.safetensors --out {}",
        "edit dog cat --seed 1 --out {}",
        "fleet jobs.yaml --out {}",
        "demo --out {}",
        "demo compose --out {}",
        "retrieve index photos --out {}",
        "retrieve search dog --from photos --out {}",
    ],
)
def test_a_place_where_nothing_can_be_made_is_refused_before_anything_is_read(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = fails(capsys, *words.format("/proc/moongate").split())
    assert "cannot be written, because /proc is not a folder that you may write into" in message
    assert message.count(". ") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("words", ["masks", "captions"])
def test_photos_beside_which_nothing_can_be_made_are_refused_before_a_model_is_loaded(
    words: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "touch", refused)
    message = fails(capsys, words, pictures, "--category", "bear", "--model", "a-model-that-is-nowhere")
    assert "is not a folder that you may write into. Choose a path that you may read and write." in message


def test_a_threshold_of_masks_is_checked_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "masks", "nowhere", "--category", "bear", "--threshold", "3", "--model", "nowhere-either")
    assert "The threshold is 3.0; it must be between 0 and 1" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "photos", "--steps", "1e3"], "--steps: '1e3' is not a whole number. Write it with digits only"),
        (["generate", "dog", "--count", "1.5"], "--count: '1.5' is not a whole number."),
        (["generate", "dog", "--guidance", "much"], "--guidance: 'much' is not a number. Write it as 0.5 or 1e-5."),
        (["compress", "a", "--out", "b", "--energy", "60%"], "--energy: '60%' is not a number."),
        (["generate", "dog", "--out", ""], "--out: it is empty. Give a value, or leave the option out"),
        (["generate", "dog", "--model", " "], "--model: it is empty."),
        (["generate", "dog", "--concept", ""], "The name of a concept file is empty."),
        (["info", ""], "FILE: it is empty."),
        (["retrieve", "index", "", "--out", "a"], "SOURCE: it is empty."),
    ],
)
def test_a_value_that_cannot_be_read_is_named_with_the_option_and_what_to_write(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, *words).replace("\u2502 ", "")


LONG = "photo of a dog on the beach and " * 12
"""A prompt that is longer than any file name."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--concept", "gone.safetensors", LONG], "There is no concept file gone.safetensors."),
        (["generate", LONG, "--concept", f"{LONG}:1"], "There is no concept file photo of a dog"),
        (["edit", LONG, f"{LONG} cat"], "Without a picture, the source is drawn from a seed."),
        (["analyze", "attention", "gone.safetensors", "--source", LONG], "There is no concept file gone.safetensors."),
        (["merge", "gone.safetensors", "--protect", LONG, "--check"], "There is no concept file gone.safetensors."),
        (["evaluate", "gone.safetensors", "--prompts", LONG], "is neither a set of prompts"),
    ],
)
def test_a_prompt_that_is_too_long_for_a_file_name_is_taken_as_a_prompt(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words)


@pytest.mark.parametrize(
    "words", ["edit dog cat --seed 1 --concept {}", "compress {} --out small.safetensors", "evaluate {}"]
)
def test_a_strength_behind_a_file_is_named_where_none_is_read(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bear.safetensors").touch()
    message = fails(capsys, *words.format("bear.safetensors:0.8").split())
    assert "Only `generate` and `merge` read a strength behind the name" in message
    assert "Give bear.safetensors." in message
