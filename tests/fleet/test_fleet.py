"""A fleet does every job once, whatever dies on the way."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fleet_work import always_dies, cannot_begin, count, processes_of, steps_of, whole_fleet
from moongate import FleetError, OptionError
from moongate.fleet import Job, Queue, Status, run


@pytest.fixture(autouse=True)
def _workers_need_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    def make(name: str, **settings: Any) -> Job:
        return Job(name=name, settings={"place": str(tmp_path / f"{name}.txt"), "steps": 3, **settings})

    return make


def outcomes(statuses: Sequence[Status]) -> dict[str, str]:
    return {status.name: status.state for status in statuses}


def wait_for(path: Path, lines: int = 1) -> None:
    began = time.monotonic()
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() - began < 60, f"{path} has not {lines} lines after a minute"
        time.sleep(0.02)


def test_a_fleet_goes_on_when_jobs_fail_and_its_workers_are_killed(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    jobs = [
        make_job("dies", dies_at=2),
        make_job("good"),
        make_job("fails", fails_at=1),
        make_job("crashes", crashes_at=1),
        make_job("dies-at-the-end", dies_at=3),
    ]
    seen: list[Sequence[Status]] = []
    done = run(tmp_path / "fleet", jobs, count, devices=["cpu"], on_change=seen.append)
    assert outcomes(done) == {
        "dies": "done",
        "good": "done",
        "fails": "failed",
        "crashes": "failed",
        "dies-at-the-end": "done",
    }
    errors = {status.name: status.error for status in done if status.error}
    assert errors == {
        "fails": "The seed is odd. Choose an even one.",
        "crashes": "RuntimeError: CUDA out of memory. The log has the details.",
    }
    for job in (jobs[0], jobs[1], jobs[4]):
        assert steps_of(Path(job.settings["place"])) == [1, 2, 3]
    assert len(processes_of(tmp_path / "dies.txt")) == 2
    assert "Tried to allocate 2 GiB" in (tmp_path / "fleet" / "logs" / "crashes.log").read_text()
    assert outcomes(seen[0]) == dict.fromkeys([job.name for job in jobs], "queued")
    assert seen[-1] == done

    again = run(tmp_path / "fleet", [*jobs[:2], make_job("fails")], count, devices=["cpu"])
    assert outcomes(again) == {"dies": "done", "good": "done", "fails": "done"}
    assert again[:2] == done[:2], "finished jobs are not done again"
    assert again[2].error is None


def test_a_job_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    (status,) = run(tmp_path / "fleet", [Job(name="deadly", settings={})], always_dies, devices=["cpu"])
    assert status.state == "failed"
    assert "ended 3 times (signal SIGKILL)" in str(status.error)


def test_two_fleets_share_one_folder_and_one_of_them_may_be_killed(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    jobs = [make_job(f"job{number}", steps=20, pause_s=0.1) for number in range(3)]
    spawn = multiprocessing.get_context("spawn").Process
    first, second = (spawn(target=whole_fleet, args=(tmp_path / "fleet", jobs, ["cpu"])) for _ in range(2))
    first.start()
    second.start()
    wait_for(tmp_path / "job0.txt", 5)
    first.kill()
    first.join()
    second.join(120)
    assert second.exitcode == 0
    for job in jobs:
        assert steps_of(Path(job.settings["place"])) == list(range(1, 21)), "each step is done once"


def test_moving_its_file_pauses_continues_and_cancels_a_running_job(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    queue, moved = Queue(tmp_path / "fleet"), []

    def on_change(statuses: Sequence[Status]) -> None:
        states = outcomes(statuses)
        if not moved and states.get("paused") == "running":
            moved.append(True)
            queue.move("paused", "running", "paused")
            (queue.folder / "queued" / "canceled.json").unlink()

    jobs = [make_job("paused", steps=400, pause_s=0.05), make_job("canceled"), make_job("last")]
    done = run(queue.folder, jobs, count, devices=["cpu"], on_change=on_change)
    assert outcomes(done) == {"paused": "paused", "last": "done"}
    assert not (tmp_path / "canceled.txt").exists()
    steps = len(steps_of(tmp_path / "paused.txt"))
    assert 0 < steps < 400

    Path(jobs[0].settings["place"]).write_text("1 0\n" * 399)
    queue.move("paused", "paused", "queued")
    (status,) = run(queue.folder, jobs[:1], count, devices=["cpu"])
    assert (status.state, status.done) == ("done", 400)


def test_ctrl_c_gives_the_job_back(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job("long", steps=1000, pause_s=0.05)
    fleet = multiprocessing.get_context("spawn").Process(target=whole_fleet, args=(tmp_path / "fleet", [job], ["cpu"]))
    fleet.start()
    wait_for(tmp_path / "long.txt", 3)
    os.kill(fleet.pid or 0, signal.SIGINT)
    fleet.join(60)
    assert Queue(tmp_path / "fleet").states() == {"long": "queued"}
    status = json.loads((tmp_path / "fleet" / "status" / "long.json").read_text())
    assert status["seconds"] > 0


def test_workers_that_cannot_begin_end_the_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moongate.fleet.processes._serve", cannot_begin)
    with pytest.raises(FleetError, match=r"The worker on cpu ended 3 times \(exit status 1\) before it had a job"):
        run(tmp_path / "fleet", [Job(name="any", settings={})], count, devices=["cpu"])


def test_a_fleet_without_a_device_is_refused_before_a_job_is_queued(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="There is no device"):
        run(tmp_path / "fleet", [make_job("a")], count, devices=[])
    assert not (tmp_path / "fleet").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../bear"], r"'../bear' has a name that cannot be a file name.*such as 'bear'"),
        ([".hidden"], "cannot be a file name"),
        (["a/b"], "such as 'a-b'"),
        (["x" * 200], "cannot be a file name"),
        (["bear", "dog", "bear"], "Two jobs are called 'bear' and 'bear'"),
        (["bear", "Bear"], "Two jobs are called 'bear' and 'Bear'"),
    ],
)
def test_names_that_are_no_file_names_and_equal_names_are_refused(
    names: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        run(tmp_path / "fleet", [Job(name=name, settings={}) for name in names], count, devices=["cpu"])
    assert not (tmp_path / "fleet").exists()
