import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import write_pictures
from moongate.concept import Concept
from moongate.errors import OptionError
from moongate.fleet import Job, Queue
from moongate.studio.commands import Commands
from moongate.studio.places import Places
from moongate.studio.trainings import Trainings


@pytest.fixture
def trainings(tmp_path: Path) -> Trainings:
    places = Places.open(tmp_path / "studio")
    return Trainings(places=places, commands=Commands(folder=places.commands), device="cpu")


def entry(trainings: Trainings, tiny_folder: Path, **options: object) -> dict[str, object]:
    photos = trainings.places.photos / "bear"
    if not photos.exists():
        write_pictures(photos, count=3, seed=0)
    subject = {"pictures": str(photos), "category": "bear", "token": "<bear>"}
    usual = {"model": str(tiny_folder), "steps": 3, "regularization": "none", "page": False, "ignore_memory": True}
    return {"name": "bear", "concepts": [subject], **usual, **options}


def tend_until(trainings: Trainings, name: str, state: str) -> None:
    end = time.monotonic() + 240
    while trainings.queue.state(name) != state:
        trainings.tend()
        assert time.monotonic() < end, trainings.queue.status(name, trainings.queue.state(name) or "")
        time.sleep(0.2)


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 240
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_training_is_done_though_its_fleet_is_killed(trainings: Trainings, tiny_folder: Path) -> None:
    trainings.add(entry(trainings, tiny_folder))
    trainings.tend()
    process = trainings.places.commands / "fleet.process"
    end = time.monotonic() + 120
    while not process.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(json.loads(process.read_text())["pid"], signal.SIGKILL)
    tend_until(trainings, "bear", "done")
    assert (trainings.places.concepts / "bear.safetensors").exists()
    started = [each for each in trainings.commands.all() if each.name.startswith("fleet")]
    assert len(started) >= 2
    for child in trainings.commands._children.values():
        child.wait()
    with pytest.raises(OptionError, match="already a concept called 'bear'"):
        trainings.add(entry(trainings, tiny_folder))


@pytest.mark.slow
def test_a_training_that_is_paused_while_it_runs_goes_on_to_the_concept_of_one_that_was_not(
    trainings: Trainings, tiny_folder: Path
) -> None:
    steps = 400
    trainings.add(entry(trainings, tiny_folder, steps=steps))
    wait_until(lambda: trainings.tend() or trainings.queue.status("bear", "running").done > 20)
    trainings.pause("bear")
    wait_until(lambda: not any(each.state == "running" for each in trainings.commands.all()))
    stopped = trainings.queue.status("bear", "paused")
    assert 20 < stopped.done < steps
    trainings.resume("bear")
    tend_until(trainings, "bear", "done")
    trainings.add(entry(trainings, tiny_folder, steps=steps, name="whole"))
    tend_until(trainings, "whole", "done")
    first, second = (Concept.load(trainings.places.concepts / f"{name}.safetensors") for name in ("bear", "whole"))
    assert all(torch.equal(first.tokens[token], row) for token, row in second.tokens.items())
    assert all(torch.equal(first.deltas[name].delta, change.delta) for name, change in second.deltas.items())
    for child in trainings.commands._children.values():
        child.wait()


def test_a_job_that_the_fleet_refuses_fails_with_its_message_and_is_not_started_again(
    trainings: Trainings, tiny_folder: Path
) -> None:
    trainings.add(entry(trainings, tiny_folder, method="nonsense"))
    tend_until(trainings, "bear", "failed")
    assert "unknown method 'nonsense'" in (trainings.queue.status("bear", "failed").error or "")
    trainings.tend()
    assert len(trainings.commands.all()) == 1
    for child in trainings.commands._children.values():
        child.wait()


@pytest.mark.parametrize("job", [{}, {"name": "other", "concepts": []}, {"name": None}])
def test_a_job_that_does_not_name_itself_starts_no_fleet(job: dict[str, object], trainings: Trainings) -> None:
    """The fleet would refuse it, or do it under another name, and be started again every second."""
    trainings.queue.add(Job(name="bear", settings={"job": job}))
    trainings.tend()
    assert trainings.commands.all() == []
    assert trainings.entry("bear", "queued") is None


@pytest.mark.parametrize("words", [["fleet"], ["fleet", "FOLDER/private.txt"], ["fleet", 3], "fleet"])
def test_the_record_of_a_command_that_somebody_changed_removes_no_file(words: object, trainings: Trainings) -> None:
    folder = trainings.places.commands
    (folder / "private.txt").write_text("private")
    (folder / "fleet.json").write_text(json.dumps({"words": words, "began": 1.0}).replace("FOLDER", str(folder)))
    (folder / "fleet.ended").write_text('{"status": 2}')
    trainings.tend()
    assert (folder / "private.txt").exists()
    assert all(isinstance(each.command.line, str) for each in trainings.commands.all())


def test_a_training_that_failed_is_tried_again_when_it_is_resumed_or_added_again(
    trainings: Trainings, tiny_folder: Path
) -> None:
    """The fleet that it failed in ended with the status of one that refuses its jobs."""
    folder, job = trainings.places.commands, entry(trainings, tiny_folder)
    trainings.add(job)
    (folder / "jobs.list").write_text(json.dumps([job]))
    record = {"words": ["fleet", str(folder / "jobs.list"), "--out", "nowhere"], "began": 1.0}
    for name, content in {"fleet.json": record, "fleet.ended": {"status": 2}}.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "fleet.log").write_text("error: out of memory")
    trainings.queue.move("bear", "queued", "failed")  # as the fleet did
    trainings.tend()
    for again in (lambda: trainings.resume("bear"), lambda: trainings.add(job)):
        again()
        trainings.tend()
        (started,) = (each for each in trainings.commands.all() if each.name != "fleet")
        assert started.state == "running"
        for child in trainings.commands._children.values():
            child.kill()
            child.wait()
        for file in (*folder.glob(f"{started.name}.*"), folder / "jobs.list"):
            file.unlink()
        trainings.queue.move("bear", trainings.queue.state("bear") or "", "failed")


def test_the_name_of_a_concept_is_free_again_when_it_was_deleted(trainings: Trainings, tiny_folder: Path) -> None:
    trainings.add(entry(trainings, tiny_folder))
    with pytest.raises(OptionError, match="'bear' is in the queue already"):
        trainings.add(entry(trainings, tiny_folder))
    trainings.queue.move("bear", "queued", "done")
    concept = trainings.places.concepts / "bear.safetensors"
    concept.touch()
    with pytest.raises(OptionError, match="already a concept called 'bear'"):
        trainings.add(entry(trainings, tiny_folder, steps=5))
    concept.unlink()
    trainings.add(entry(trainings, tiny_folder, steps=5))
    assert trainings.queue.states() == {"bear": "queued"}


def test_names_that_are_no_file_names_are_refused(trainings: Trainings, tiny_folder: Path) -> None:
    for name in ("", "../bear", "a/b"):
        with pytest.raises(OptionError):
            trainings.add(entry(trainings, tiny_folder, name=name))
    assert Queue(trainings.places.fleet).states() == {}


def test_the_command_is_the_one_that_trains_the_same(trainings: Trainings, tiny_folder: Path) -> None:
    words = trainings.command(entry(trainings, tiny_folder, holdout="a b")).words
    assert words[:2] == ("train", str(trainings.places.photos / "bear"))
    assert ("--no-page" in words, "--ignore-memory" in words) == (True, True)
    assert words[words.index("--holdout") + 1] == "a b"
    assert words[-2:] == ("--out", str(trainings.places.concepts / "bear.safetensors"))


def test_paused_jobs_wait_and_canceled_ones_are_gone(trainings: Trainings, tiny_folder: Path) -> None:
    trainings.add(entry(trainings, tiny_folder))
    trainings.pause("bear")
    trainings.tend()
    assert trainings.commands.all() == []
    trainings.resume("bear")
    assert trainings.queue.state("bear") == "queued"
    with pytest.raises(OptionError, match="is not paused or failed anymore"):
        trainings.resume("bear")
    trainings.cancel("bear")
    assert trainings.queue.states() == {}
