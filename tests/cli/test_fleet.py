import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import Command, command, fails, run
from moongate.cli.jobs import FleetJob, read_entries
from moongate.concept import Concept
from moongate.fleet import Queue


@pytest.fixture(autouse=True)
def _one_thread_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def bear_job(pictures: Path, regularization: Path, tiny_folder: Path) -> dict[str, Any]:
    """The training of the fixture `train`, as a job; its paths are relative to the file of jobs."""
    subject = {"pictures": pictures.name, "category": "teddy bear", "token": "<bear>"}
    subject["regularization"] = regularization.name
    training = {"model": str(tiny_folder), "steps": 3, "page": False, "dtype": "float32"}  # measured in the worker else
    return {"name": "bear", "concepts": [subject], **training}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(*jobs: dict[str, Any]) -> Command:
        (tmp_path / "jobs.yaml").write_text(json.dumps(jobs))
        return command("fleet", tmp_path / "jobs.yaml", out=tmp_path / "concepts", device="cpu")

    return write


EVALUATION = {"count": 1, "steps": 2, "prompts": "prompts.txt", "features": ["pocket-clip"]}


def test_a_fleet_trains_and_evaluates_as_the_commands_do(
    bear_job: dict[str, Any], write: Any, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("photo of a {}\n")
    jobs = (
        {**bear_job, "seed": 1, "evaluate": EVALUATION},
        {**bear_job, "name": "fails", "rare_token": 99},
        {**bear_job, "name": "second", "seed": 2},
    )
    message = fails(capsys, write(*jobs))
    assert "1 of 3 jobs failed. fails: " in message
    assert "rare token" in message
    for name, seed in (("bear", 1), ("second", 2)):
        run(train.but(seed=seed, overwrite=True))
        alone = (tmp_path / "bear.safetensors").read_bytes()
        assert (tmp_path / "concepts" / f"{name}.safetensors").read_bytes() == alone
    record = json.loads((tmp_path / "concepts" / "bear.evaluation" / "record.json").read_text())
    assert {row["measure"] for row in record["measures"]} == {"text alignment"}

    capsys.readouterr()
    run(write(jobs[0], jobs[2]).but(json=True))  # starts no worker: both are done
    printed = json.loads(capsys.readouterr().out)
    assert [job["state"] for job in printed["jobs"]] == ["done", "done"]
    assert printed["jobs"][0]["measures"] == record["measures"]
    assert "'bear' is done in" in fails(capsys, write({**jobs[0], "seed": 7}))


def test_a_finished_job_whose_concept_or_sole_record_was_removed_is_done_again(
    bear_job: dict[str, Any],
    write: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "prompts.txt").write_text("photo of a {}\n")
    evaluated = {"name": "judged", "evaluate": {**EVALUATION, "files": "concepts/kept.safetensors"}}
    jobs = [bear_job, {**bear_job, "name": "kept", "evaluate": EVALUATION}, evaluated]
    done = tmp_path / "concepts" / "jobs" / "done"
    done.mkdir(parents=True)
    for job in jobs:
        (done / f"{job['name']}.json").write_text("{}")
    (tmp_path / "concepts" / "kept.safetensors").touch()
    states: list[dict[str, str]] = []
    monkeypatch.setattr("moongate.fleet.run", lambda folder, *_, **__: states.append(Queue(folder).states()) or [])
    run(write(*jobs))
    assert states == [{"bear": "queued", "kept": "done", "judged": "queued"}]
    said = " ".join(capsys.readouterr().out.split())
    assert "bear.safetensors is not there anymore, so the job 'bear' is done again." in said
    assert "record.json is not there anymore, so the job 'judged' is done again." in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, "The job 'bear' has the unknown key 'sede'. Did you mean 'seed'?"),
        ({"out": "x"}, "has the unknown key 'out'"),
        ({"seed": "one"}, "The job 'bear' has seed: 'one'. Give a whole number."),
        ({"seed": True}, "has seed: True. Give a whole number."),
        ({"lr_per_picture": "fast"}, "has lr_per_picture: 'fast'. Give a number."),
        ({"flips": "yes"}, "has flips: 'yes'. Give true or false."),
        ({"dtype": "float7"}, "has dtype: 'float7'. Give one of "),
        ({"steps": 0}, "The job 'bear': steps is 0"),
        ({"holdout": "gone"}, "The job 'bear': --holdout gone is neither a number of pictures nor a folder."),
        ({"regularization_count": 0}, "The job 'bear': regularization-count is 0"),
        ({"method": "dreambooht"}, "unknown method 'dreambooht'. Did you mean 'dreambooth'?"),
        ({"concepts": []}, "has concepts: []. Give a list"),
        ({"concepts": [{"picture": "x"}]}, "Concept 1 of the job 'bear' has the unknown key 'picture'"),
        ({"concepts": [{"pictures": "gone", "category": "bear"}]}, "gone, which does not exist"),
        ({"concepts": None}, "has neither concepts to teach nor files to evaluate"),
        ({"start_from": "gone.safetensors"}, "gone.safetensors, which does not exist"),
        ({"evaluate": "yes"}, "has evaluate: 'yes'. Give true, or options"),
        ({"evaluate": {"counts": 1}}, "The evaluation of the job 'bear' has the unknown key 'counts'. Did you mean"),
        ({"evaluate": {"prompts": "gone"}}, "'gone' is neither a set of prompts"),
        ({"evaluate": {"pictures": ["gone"]}}, "gone, which does not exist"),
        ({"evaluate": {"protocol": "customconcept101:gone"}}, "The job 'bear': There is no folder gone of"),
        ({"evaluate": {"protocol": "customconcept101:.", "prompts": "object"}}, "Leave out --prompts."),
        ({"evaluate": {"count": 0}}, "The job 'bear': count is 0"),
        ({"name": "a/b"}, "'a/b' has a name that cannot be a file name"),
        ({"name": 7}, "Job 1 of"),
    ],
)
def test_a_mistake_in_a_job_is_named_before_any_work(
    change: dict[str, Any],
    message: str,
    bear_job: dict[str, Any],
    write: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = {key: value for key, value in {**bear_job, **change}.items() if value is not None}
    assert message in fails(capsys, write(job))
    assert not (tmp_path / "concepts").exists()


def test_the_paths_of_a_protocol_and_of_networks_are_relative_to_the_file_of_jobs(tmp_path: Path) -> None:
    (tmp_path / "cc").mkdir()
    (tmp_path / "bear.safetensors").touch()
    wanted = {"files": "bear.safetensors", "protocol": "customconcept101:cc#pet_cat5", "features": ["clip:cc", "dino"]}
    job = FleetJob.read({"name": "judged", "evaluate": wanted}, folder=tmp_path, out=tmp_path / "concepts")
    assert job.evaluate is not None
    assert job.evaluate.protocol == f"customconcept101:{tmp_path / 'cc'}#pet_cat5"
    assert job.evaluate.features == ((f"clip:{tmp_path / 'cc'}", "dino"),)


def test_two_jobs_of_one_name_no_list_and_no_file_are_refused(
    bear_job: dict[str, Any], write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Two jobs are called 'bear' and 'bear'" in fails(capsys, write(bear_job, bear_job))
    (tmp_path / "jobs.yaml").write_text("name: bear\n")
    fleet = command("fleet", tmp_path / "jobs.yaml", out=tmp_path / "concepts")
    assert "holds no list of jobs" in fails(capsys, fleet)
    assert "There is no file of jobs" in fails(capsys, fleet.but(tmp_path / "gone.yaml"))
    (tmp_path / "jobs.yaml").write_text("- name: [")
    assert "cannot be read" in fails(capsys, fleet)


def test_a_device_and_a_cluster_that_are_not_there_are_named_in_seconds(
    bear_job: dict[str, Any], write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = write(bear_job)
    assert "'cuda:77'" in fails(capsys, fleet.but(device="cuda:77"))
    assert "--workers 0 is too few" in fails(capsys, fleet.but(workers=0))
    began = time.monotonic()
    for address in ("127.0.0.1:1", "there-is-no-such-host.invalid:6379"):
        assert f"No Ray cluster answers at {address}" in fails(capsys, fleet.without("device").but(ray=address))
    for address in ("nonsense", "ray://head:10001", "head:port"):
        assert f"The Ray address is {address!r}" in fails(capsys, fleet.without("device").but(ray=address))
    assert "--device would be ignored" in fails(capsys, fleet.but(ray="127.0.0.1:1"))
    assert time.monotonic() - began < 20


def kill_when(condition: Any, queue: Queue, name: str) -> threading.Thread:
    """Kill the worker of a job, once, as soon as the condition holds; the thread ends then."""

    def watch() -> None:
        while not condition():
            time.sleep(0.005)
        status = queue.status(name, "running")
        os.kill(int(status.process.split()[-1]), signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the first state", "after a state", "at the end", "in the evaluation"])
def test_a_training_whose_worker_is_killed_gives_the_concept_of_an_uninterrupted_one(
    moment: str, bear_job: dict[str, Any], write: Any, train: Command, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("photo of a {}\n")
    out = tmp_path / "concepts"
    log = out / "bear.run" / "log.jsonl"

    def logged(lines: int) -> bool:
        return log.exists() and len(log.read_text().splitlines()) >= lines

    killer = kill_when(
        {
            "before the first state": lambda: logged(10),
            "after a state": lambda: logged(60),
            "at the end": lambda: (out / "bear.run" / "result.json").exists(),
            "in the evaluation": lambda: any((out / "bear.evaluation").rglob("*.png")),
        }[moment],
        Queue(out / "jobs"),
        "bear",
    )
    run(write({**bear_job, "steps": 120, "evaluate": {**EVALUATION, "count": 8, "steps": 20}}))
    killer.join(0)
    assert not killer.is_alive(), "the worker was killed"
    run(train.but(steps=120))
    assert Concept.load(out / "bear.safetensors").hash == Concept.load(tmp_path / "bear.safetensors").hash
    assert len(log.read_text().splitlines()) == 120


@pytest.mark.slow
def test_a_ray_cluster_loses_nothing_when_a_worker_is_killed(
    bear_job: dict[str, Any], write: Any, train: Command, tmp_path: Path
) -> None:
    """The fleet is a process of its own, as a user starts it, because Ray's own warnings would fail the test."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        out = tmp_path / "concepts"
        log = out / "job1.run" / "log.jsonl"
        killer = kill_when(lambda: log.exists() and len(log.read_text().splitlines()) > 52, Queue(out / "jobs"), "job1")
        fleet = write(*({**bear_job, "name": f"job{seed}", "seed": seed, "steps": 70} for seed in range(3)))
        arguments = fleet.without("device").but(ray=cluster.address, json=True).arguments()
        done = subprocess.run([sys.executable, "-m", "moongate", *arguments], capture_output=True, check=True)
        killer.join(0)
        assert not killer.is_alive(), "a worker was killed"
    finally:
        cluster.shutdown()
    jobs = json.loads(done.stdout.splitlines()[-1])["jobs"]
    assert [job["state"] for job in jobs] == ["done"] * 3
    workers = {json.loads((out / "jobs" / "status" / f"job{n}.json").read_text())["process"] for n in range(3)}
    assert len(workers) >= 2
    for seed in range(3):
        run(train.but(seed=seed, steps=70, overwrite=True))
        alone = (tmp_path / "bear.safetensors").read_bytes()
        assert (out / f"job{seed}.safetensors").read_bytes() == alone


@pytest.mark.slow
def test_a_port_that_answers_but_is_no_cluster_is_named_in_seconds(
    bear_job: dict[str, Any], write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        message = fails(capsys, write(bear_job).without("device").but(ray=address))
    assert f"No Ray cluster answers at {address} (No answer in 20 seconds.)" in message
    assert time.monotonic() - began < 60


def test_a_list_of_jobs_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for name, text in (("jobs.yaml", "- name: bear"), ("jobs.json", '[{"name": "bear"}]')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_entries(tmp_path / name) == [{"name": "bear"}]


def test_a_key_that_is_no_text_and_a_date_in_a_list_of_jobs_are_named(
    write: Any, bear_job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a job that is done, whose settings are compared with those of the file."""
    fleet = write(bear_job)
    file = tmp_path / "concepts" / "jobs" / "done" / "bear.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    (tmp_path / "jobs.yaml").write_text("- name: bear\n  seed: 2024-01-02\n")
    assert "it holds the date 2024-01-02; write text in quotes. Correct it there." in fails(capsys, fleet)
    file.unlink()
    (tmp_path / "jobs.yaml").write_text(json.dumps([bear_job])[:-2] + ', "evaluate": {1: 2}}]')
    assert "The evaluation of the job 'bear' has the unknown key 1. Known: " in fails(capsys, fleet)


def test_a_job_that_evaluates_alone_may_have_the_name_of_a_concept_that_is_there(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("photo of a {}\n")
    for file in (tmp_path / "bear.safetensors", tmp_path / "concepts" / "bear.safetensors"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    job = {"name": "bear", "evaluate": {**EVALUATION, "files": "bear.safetensors"}}
    assert "There is no device 'cuda:99'" in fails(capsys, write(job).but(device="cuda:99"))
