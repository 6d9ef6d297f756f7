"""A job is a file: its folder is its state, and its lock says who has it."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fleet_work import claim_and_wait
from moongate import OptionError
from moongate.fleet import Job, Queue, Status


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    queue = Queue(tmp_path / "fleet")
    for number, name in enumerate(("second", "first")):
        queue.add(Job(name=name, settings={"seed": number}))
        os.utime(queue.folder / "queued" / f"{name}.json", (2 - number, 2 - number))
    return queue


def test_the_oldest_job_is_claimed_first_and_each_once(queue: Queue) -> None:
    first = queue.claim({"first", "second"}, worker="a")
    second = queue.claim({"first", "second"}, worker="b")
    assert first is not None
    assert second is not None
    assert (first.name, second.name) == ("first", "second")
    assert queue.claim({"first", "second"}, worker="c") is None
    assert queue.status("first", "running").worker == "a"
    assert not queue.is_abandoned("first")
    with first:
        first.report(1, 4)
        first.finish({"concept": "first.safetensors"})
    with second:
        assert second.give_back()
    assert queue.states() == {"first": "done", "second": "queued"}
    done = queue.status("first", "done")
    assert (done.done, done.total, done.result) == (1, 4, {"concept": "first.safetensors"})


def test_the_age_of_a_job_counts_and_not_its_name(queue: Queue) -> None:
    os.utime(queue.folder / "queued" / "second.json", (0, 0))
    with queue.claim({"first", "second"}, worker="a") as claim:  # type: ignore[union-attr]
        assert claim.name == "second"


def test_a_claim_that_cannot_be_written_leaves_the_job_to_others(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_queue: Queue, _status: Status) -> None:
        raise OptionError("No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "write", full)
        with pytest.raises(OptionError, match="No space left"):
            queue.claim({"first"}, worker="a")
    assert queue.is_abandoned("first")
    claim = queue.claim({"first"}, worker="b")
    assert claim
    claim.lock.release()


def test_only_the_jobs_that_are_named_are_claimed(queue: Queue) -> None:
    claim = queue.claim({"second", "other"}, worker="a")
    assert claim is not None
    with claim:
        assert claim.name == "second"
    assert queue.claim({"other"}, worker="a") is None


def test_the_job_of_a_killed_process_can_be_claimed_at_once(queue: Queue, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=claim_and_wait, args=(queue, "first"))
    process.start()
    began = time.monotonic()
    while queue.status("first", "running").done != 7:
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    assert queue.claim({"first"}, worker="a") is None
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert queue.is_abandoned("first")
    claim = queue.claim({"first"}, worker="a")
    assert claim is not None
    with claim:
        assert queue.states()["first"] == "running"
        assert queue.status("first", "running").done == 7, "how far it was is kept"


def test_a_claim_whose_file_was_moved_ends_where_the_file_is(queue: Queue) -> None:
    claim = queue.claim({"first"}, worker="a")
    assert claim is not None
    with claim:
        assert claim.holds
        queue.move("first", "running", "paused")
        assert not claim.holds
        assert not claim.give_back()
    assert queue.state("first") == "paused"


def test_a_job_may_be_added_again_and_with_other_settings_while_it_is_queued_or_after_it_failed(queue: Queue) -> None:
    queue.add(Job(name="first", settings={"seed": 5}))
    assert queue.states() == {"first": "queued", "second": "queued"}, "it is only queued: the new settings hold"
    with queue.claim({"first"}, worker="a") as claim:  # type: ignore[union-attr]
        assert claim.queue.settings("first") == {"seed": 5}
        queue.add(Job(name="first", settings={"seed": 5}))
        with pytest.raises(OptionError, match="'first' is running in .* with other settings. Give it another name"):
            queue.add(Job(name="first", settings={"seed": 6}))
        claim.fail("The seed is odd.")
    queue.add(Job(name="first", settings={"seed": 6}))
    assert queue.status("first", "queued").error == "The seed is odd."
    with queue.claim({"first"}, worker="a") as claim:  # type: ignore[union-attr]
        assert claim.queue.settings("first") == {"seed": 6}
        assert queue.status("first", "running").error is None
        claim.finish({})
    queue.add(Job(name="first", settings={"seed": 6}))
    assert queue.state("first") == "done"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"\xff", b'{"done": 1, "unknown": 2}', b'{"error": null}', b'{"state": "done", "name": 3}'),
        b'{"done": "much", "total": null, "seconds": "long", "worker": 3, "error": [], "result": "good"}',
    ],
)
def test_a_status_that_somebody_else_wrote_does_no_harm(content: bytes, queue: Queue) -> None:
    (queue.folder / "status").mkdir()
    (queue.folder / "status" / "first.json").write_bytes(content)
    status = queue.status("first", "queued")
    assert (status.name, status.state, status.result) == ("first", "queued", {})
    assert (status.total, status.seconds, status.share, status.error) == (0, 0.0, 0.0, None)
    with queue.claim({"first"}, worker="a") as claim:  # type: ignore[union-attr]
        claim.finish({})


def test_a_result_that_is_no_json_fails_its_job_and_not_its_worker(queue: Queue) -> None:
    with queue.claim({"first"}, worker="a") as claim:  # type: ignore[union-attr]
        with pytest.raises(TypeError, match="not JSON serializable"):
            claim.finish({"file": Path("first.safetensors")})
        claim.fail("Its result is no JSON.")
    assert queue.state("first") == "failed"
    assert queue.status("first", "failed").error == "Its result is no JSON."


def test_the_share_of_a_job_is_that_of_its_steps_and_whole_only_at_its_end() -> None:
    assert Status(name="a", state="queued").share == 0
    assert Status(name="a", state="running", done=1, total=4).share == 0.25
    assert Status(name="a", state="running", done=4, total=4).share < 1
    assert Status(name="a", state="failed", done=1, total=4).share == 1


def test_a_file_of_a_job_that_holds_no_settings_fails_the_job_alone(queue: Queue) -> None:
    (queue.folder / "queued" / "first.json").write_text("[")
    claim = queue.claim({"first"}, worker="a")
    assert claim is not None
    with claim, pytest.raises(Exception, match=r"running/first.json holds no settings. Queue the job again."):
        claim.queue.settings("first")
    assert json.loads((queue.folder / "queued" / "second.json").read_text()) == {"seed": 0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("moongate.fleet.queue.time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_the_time_of_all_workers_that_had_a_job_is_added_up(queue: Queue, clock: SimpleNamespace) -> None:
    for worker, seconds in (("a", 2.0), ("b", 3.5)):
        with queue.claim({"first"}, worker=worker) as claim:  # type: ignore[union-attr]
            clock.seconds += seconds
            claim.give_back()
        clock.seconds += 100
    assert queue.status("first", "queued").seconds == 5.5


def test_how_far_a_job_is_is_written_at_once_then_each_second_and_when_all_is_done(
    queue: Queue, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = Queue.write
    monkeypatch.setattr(Queue, "write", lambda own, status: written.append(status.done) or real(own, status))
    with queue.claim({"first"}, worker="a") as claim:  # type: ignore[union-attr]
        written.clear()
        for done in range(1, 11):
            claim.report(done, 10)
            clock.seconds += 0.3
    assert written == [1, 5, 9, 10]
