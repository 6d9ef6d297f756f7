import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from command_line import Command, fails, run
from moongate.backbone import Backbone
from moongate.cli import Train
from moongate.cli.options import ModelOptions
from moongate.errors import OptionError
from moongate.pages import Page
from moongate.run_page import Album, drawing
from moongate.sampling import sample
from moongate.training import Step, memory


@pytest.fixture
def shown(train: Command) -> Command:
    """The short training, with the page of its run."""
    return train.without("no_page")


def test_a_run_has_a_page_that_ends_with_base_beside_concept(
    shown: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(shown.but(validate_every=2))
    page = (tmp_path / "bear.run" / "index.html").read_text()
    assert "Finished after 3 steps" in page
    assert "refresh" not in page
    album = Album(tmp_path / "bear.run")
    assert [each.prompt for each in album.drawn("taught")] == ["photo of a <bear> teddy bear"] * 3
    assert {(each.step, each.prompt) for each in album.drawn("validation")} == {
        (0, "photo of a teddy bear"),
        (2, "photo of a <bear> teddy bear"),
    }
    compared = album.drawn("comparison")
    assert {each.prompt for each in compared if each.place == 0} == {
        "photo of a teddy bear on the beach",
        "photo of a <bear> teddy bear on the beach",
    }
    assert len(compared) % 4 == 0, "two seeds of base and of concept for each prompt"
    said = " ".join(capsys.readouterr().out.split())
    assert f"Drawing {len(compared)} pictures for the page in about" in said
    assert said.index("Wrote " + str(tmp_path / "bear.safetensors")) < said.index(f"Drawing {len(compared)}"), (
        "the concept comes first"
    )


@pytest.mark.filterwarnings("ignore::moongate.errors.MoongateWarning")
def test_the_page_follows_a_run_and_says_that_it_was_stopped(shown: Command, tmp_path: Path) -> None:
    pages: list[str] = []
    bases: list[int] = []

    def look(step: Step) -> None:
        bases.append(len([each for each in Album(tmp_path / "bear.run").drawn("validation") if not each.step]))
        path = tmp_path / "bear.run" / "index.html"
        pages.append(path.read_text() if path.exists() else "")
        if step.index == 3:
            raise OptionError("enough")

    command = Train(
        pictures=shown.positional,
        category=("teddy bear",),
        token=("<bear>",),
        regularization=(str(shown.options["regularization"]),),
        model=ModelOptions(model=str(shown.options["model"])),
        out=shown.options["out"],
        steps=3,
        validate_every=1,
        on_step=look,
    )
    with pytest.raises(OptionError, match="enough"):
        command(Console(quiet=True))
    assert bases == [4, 4, 4], "the base's own pictures are there from the first step on"
    assert "step 2 of 3" in pages[2]
    assert 'http-equiv="refresh"' in pages[2]
    page = (tmp_path / "bear.run" / "index.html").read_text()
    assert "Stopped after step 3 of 3" in page
    assert "refresh" not in page


def test_the_row_of_the_base_is_drawn_by_the_base_and_not_again_by_a_resumed_run(
    shown: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(shown.but(steps=2, validate_every=2, dtype="float32"))
    album = Album(tmp_path / "bear.run")
    own = [album.image(each) for each in album.drawn("validation") if each.step == 0]
    backbone = Backbone.load(str(shown.options["model"]), device="cpu")
    prompts, seeds = ["photo of a teddy bear"] * 4, [*range(4)]
    expected = sample(backbone, prompts, seeds=seeds, options=drawing.DRAWING)
    for image, wanted in zip(own, expected, strict=True):
        assert np.array_equal(image, wanted.image)
    capsys.readouterr()
    run(shown.but(steps=4, validate_every=2, dtype="float32", resume=True))
    assert "of the base model" not in capsys.readouterr().out
    assert len([each for each in album.drawn("validation") if each.step == 0]) == 4


def test_a_page_that_cannot_be_written_ends_no_training(
    shown: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_page: Page, path: Path) -> None:
        raise OptionError(f"{path} could not be written (No space left on device).")

    monkeypatch.setattr(Page, "save", full)
    run(shown)
    assert (tmp_path / "bear.safetensors").exists()
    printed = capsys.readouterr()
    assert "The training goes on without this page." in " ".join(printed.err.split())
    assert "Wrote " + str(tmp_path / "bear.run" / "index.html") not in printed.out


def test_a_run_that_replaces_another_removes_its_pictures(train: Command, tmp_path: Path) -> None:
    run(train.but(validate_every=1))
    run(train.but(validate_every=3, overwrite=True))
    assert {each.step for each in Album(tmp_path / "bear.run").drawn()} == {3}


def test_a_run_without_a_page_that_replaces_another_leaves_no_page_of_it(shown: Command, tmp_path: Path) -> None:
    run(shown)
    page = tmp_path / "bear.run" / "index.html"
    assert page.exists()
    run(shown.but(no_page=True, overwrite=True))
    assert not page.exists()


def test_tensorboard_gets_the_losses_and_the_validation_pictures(train: Command, tmp_path: Path) -> None:
    run(train.but(tracker="tensorboard", validate_every=3, holdout=1, save_every=2))
    events = EventAccumulator(str(tmp_path / "bear.run" / "moongate"), size_guidance={"images": 0})
    events.Reload()
    log = [line for line in (tmp_path / "bear.run" / "log.jsonl").read_text().splitlines() if line]
    assert [event.step for event in events.Scalars("target_loss")] == list(range(1, len(log) + 1))
    assert [event.step for event in events.Scalars("held_out_loss")] == [2, 3]
    assert {"loss", "prior_loss", "pictures_per_second"} <= set(events.Tags()["scalars"])
    image = events.Images(events.Tags()["images"][0])[-1]
    assert (image.step, image.width, image.height) == (3, 4 * 64, 64)


class Wandb(ModuleType):
    """Stands in for the library wandb, as far as accelerate's tracker calls it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, object]] = []
        self.logged: list[tuple[int, dict[str, object]]] = []
        self.is_finished = False

    def init(self, **how: object) -> "Wandb":
        self.started.append(how)
        return self

    def log(self, values: dict[str, object], step: int) -> None:
        self.logged.append((step, values))

    def Image(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def finish(self) -> None:
        self.is_finished = True


def test_wandb_gets_the_losses_and_the_validation_pictures(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run(train.but(tracker="wandb", validate_every=3, holdout=1, save_every=2))
    assert wandb.started == [{"project": "moongate", "dir": str(tmp_path / "bear.run")}]
    assert wandb.is_finished
    losses = [(step, values) for step, values in wandb.logged if "loss" in values]
    log = [json.loads(line) for line in (tmp_path / "bear.run" / "log.jsonl").read_text().splitlines()]
    assert [(step, values["target_loss"]) for step, values in losses] == [
        (each["index"], each["target_loss"]) for each in log
    ]
    assert [step for step, values in losses if "held_out_loss" in values] == [2, 3]
    ((step, shown),) = ((step, values["validation"]) for step, values in wandb.logged if "validation" in values)
    album = Album(tmp_path / "bear.run")
    drawn = [album.image(each) for each in album.drawn("validation")]
    assert step == 3
    assert all(np.array_equal(one, other) for one, other in zip(shown, drawn, strict=True))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_before_any_work(
    train: Command, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert f"needs the library {name}" in fails(capsys, train.but(tracker=name))


def test_the_memory_is_said_before_a_training_and_too_little_of_it_stops_one(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asking = train.without("ignore_memory")
    monkeypatch.setattr(memory, "available_memory", lambda _device: 1000)
    monkeypatch.setattr(memory, "remedies", lambda _plan, _available: ["--recompute (0.1 GB)"])
    message = fails(capsys, asking)
    assert "It would fit with --recompute (0.1 GB). To try all the same, add --ignore-memory" in message
    assert not (tmp_path / "bear.run").exists()
    monkeypatch.setattr(memory, "available_memory", lambda _device: None)
    run(asking.but(steps=1))
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Training takes about [\d.]+ MB of memory \(model [\d.]+ \w+, optimizer", said)


def test_a_memory_that_cannot_be_computed_keeps_nobody_from_training(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(_plan: object) -> None:
        raise RuntimeError("no fake kernel")

    monkeypatch.setattr(memory, "needed", unknown)
    run(train.without("ignore_memory").but(steps=1))
    assert "could not be computed: no fake kernel." in capsys.readouterr().out
    assert (tmp_path / "bear.safetensors").exists()
