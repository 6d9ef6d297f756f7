import json
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from command_line import Command, command, fails, run
from conftest import write_pictures
from moongate.data import square
from moongate.data.pictures import as_tensor, read_picture
from moongate.evaluation.networks import load_network
from moongate.files import exclusive
from moongate.run_page import Album
from moongate.run_page.measures import read_measures


@pytest.fixture
def kept(train: Command) -> Command:
    """A training of four steps that keeps two concepts."""
    return train.but(steps=4, save_every=2)


@pytest.fixture
def measure(kept: Command, clip: Path, tmp_path: Path) -> Command:
    """The command that measures this training, which has not begun."""
    write_pictures(tmp_path / "held-out", count=2, seed=9)
    out = Path(kept.options["out"]).with_suffix(".run")
    return command(
        "measure", out, photos=tmp_path / "held-out", features=f"clip:{clip}", count=2, device="cpu", json=True
    )


def test_alignment_and_drift_are_those_of_the_pictures_that_are_kept(
    kept: Command, measure: Command, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(kept)
    capsys.readouterr()
    run(measure)
    report = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in report["measures"]] == [0, 2, 4]
    assert report["stop"] is None, "three measures are too few to say when to stop"
    album, network = Album(tmp_path / "bear.run"), load_network(f"clip:{clip}")

    def features(part: str, step: int) -> torch.Tensor:
        drawn = [each for each in album.drawn() if (each.part, each.step) == (part, step)]
        images = [album.image(each) for each in sorted(drawn, key=lambda each: (each.place, each.seed))]
        return F.normalize(network.image_features(torch.stack([as_tensor(image) for image in images])), dim=1)

    photos = [square(read_picture(tmp_path / "held-out" / f"{n}.png"), 64) for n in range(2)]
    targets = F.normalize(network.image_features(torch.stack(photos)), dim=1)
    for each in report["measures"]:
        shown, unrelated = features("validation", each["step"]), features("unrelated", each["step"])
        assert (len(shown), len(unrelated)) == (4, 2)
        assert each["alignment"] == pytest.approx(float((shown @ targets.T).mean()), abs=1e-5)
        drift = 1 - float((unrelated * features("unrelated", 0)).sum(dim=1).mean())
        assert each["drift"] == pytest.approx(drift, abs=1e-5)


def test_what_was_measured_with_the_same_photos_is_not_drawn_again(
    kept: Command, measure: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(kept)
    run(measure)
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "bear.run" / "pictures").iterdir()}
    run(kept.but(steps=6, resume=True))
    capsys.readouterr()
    run(measure.without("json"))
    said = capsys.readouterr().out
    assert ("Step 6:" in said, "Step 2:" in said) == (True, False)
    assert {file: file.stat().st_mtime_ns for file in first} == first
    assert [each.step for each in read_measures(tmp_path / "bear.run")] == [0, 2, 4, 6]
    write_pictures(tmp_path / "others", count=2, seed=10)
    run(measure.but(photos=tmp_path / "others"))
    assert [each["step"] for each in json.loads(capsys.readouterr().out)["measures"]] == [0, 2, 4, 6]
    assert len({each.photos for each in read_measures(tmp_path / "bear.run")}) == 1, "of one set of photos alone"


def test_another_number_of_prompts_or_another_training_in_the_folder_is_measured_anew(
    kept: Command, measure: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(command: Command) -> list[tuple[int, float, float]]:
        capsys.readouterr()
        run(command)
        return [(m["step"], m["alignment"], m["drift"]) for m in json.loads(capsys.readouterr().out)["measures"]]

    kept = kept.but(learning_rate=0.1)  # so that the drift is more than rounding
    run(kept)
    first = measured(measure)
    more = measured(measure.but(count=3))
    assert [step for step, *_ in more] == [0, 2, 4]
    assert [alignment for _, alignment, _ in more] == [alignment for _, alignment, _ in first]
    assert [drift for *_, drift in more[1:]] != [drift for *_, drift in first[1:]]
    assert {each.unrelated for each in read_measures(tmp_path / "bear.run")} == {3}
    run(kept.but(seed=7, overwrite=True))
    assert read_measures(tmp_path / "bear.run") == []
    assert measured(measure)[1:] != first[1:]


def test_following_measures_what_a_training_keeps_until_it_has_ended(
    kept: Command, measure: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moongate.cli import measure as module

    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    run(kept)
    last = tmp_path / "bear.run" / "concepts" / "000004.safetensors"
    waiting = last.rename(tmp_path / "waiting")
    following = threading.Thread(target=run, args=(measure.but(follow=True, quiet=True).without("json"),))
    with exclusive(tmp_path / "bear.run"):  # as a training that goes on
        following.start()
        while [each.step for each in read_measures(tmp_path / "bear.run")] != [0, 2]:
            time.sleep(0.05)
        waiting.rename(last)
        while [each.step for each in read_measures(tmp_path / "bear.run")] != [0, 2, 4]:
            assert following.is_alive()
            time.sleep(0.05)
    following.join(timeout=60)
    assert not following.is_alive()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count is 0; it must be at least 1."),
        ({"photos": "nowhere"}, "nowhere"),
        ({"features": "vgg"}, "Unknown features 'vgg'"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(
    kept: Command,
    measure: Command,
    changes: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(kept)
    monkeypatch.setattr("moongate.backbone.Backbone.load", None)
    assert message in fails(capsys, measure.but(**changes))


def test_a_run_that_kept_nothing_and_a_folder_that_is_no_run_are_named(
    train: Command, measure: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "bear.run" in fails(capsys, measure)
    run(train)
    for asked in (measure, measure.but(follow=True)):
        assert "has kept no concept to measure. Train with --save-every." in fails(capsys, asked)
    assert "bear.safetensors" in fails(capsys, measure.but(tmp_path / "bear.safetensors"))
