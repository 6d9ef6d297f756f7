"""`moongate train` under torchrun, as a user starts it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from conftest import write_pictures
from moongate.cli.launch import launched
from moongate.concept import Concept
from moongate.errors import OptionError, warn

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def words(model: Path, folder: Path, *, out: str, steps: int = 4000) -> list[str]:
    return [
        *("moongate", "train", str(folder / "pictures"), "--category", "bear", "--token", "<bear>"),
        *("--regularization", "none", "--model", str(model), "--device", "cpu", "--dtype", "float32"),
        *("--steps", str(steps), "--batch", "2", "--no-page", "--out", str(folder / out)),
    ]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]


def output_of(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=300)[0]


@pytest.mark.slow
def test_a_rank_that_dies_ends_all_within_a_minute_and_the_run_continues(tiny_folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", count=3, seed=0)
    training = start([*TORCHRUN, *words(tiny_folder, tmp_path, out="two.safetensors")])
    state = tmp_path / "two.run" / "state.pt"
    while not state.exists():
        assert training.poll() is None, output_of(training)
        time.sleep(0.1)
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
    began = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
    output = output_of(training)
    assert time.monotonic() - began < 60
    assert training.returncode != 0, output
    done = len((tmp_path / "two.run" / "log.jsonl").read_text().splitlines())
    assert done < 4000, "it was killed in mid-run"

    steps = done + 30
    resumed = start([*TORCHRUN, *words(tiny_folder, tmp_path, out="two.safetensors", steps=steps), "--resume"])
    output = output_of(resumed)
    assert resumed.returncode == 0, output
    assert output.count("Wrote") == 1, "one process speaks for both"
    alone = start([sys.executable, "-m", *words(tiny_folder, tmp_path, out="one.safetensors", steps=steps),
                   "--accumulate", "2"])  # fmt: skip
    assert "Wrote" in output_of(alone)
    one, two = (Concept.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.hash == two.hash


@pytest.mark.slow
def test_what_is_wrong_with_a_command_is_said_once(tiny_folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", count=3, seed=0)
    training = start([*TORCHRUN, *words(tiny_folder, tmp_path, out="two.safetensors"), "--batch", "3"])
    output = output_of(training)
    assert training.returncode != 0
    assert output.count("cannot be divided into 2 equal shards") == 1, output
    assert not (tmp_path / "two.run").exists()


def test_a_process_that_is_not_the_first_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Second:
        is_first = False

    monkeypatch.setattr("moongate.ranks.Ranks.current", lambda: Second())
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def refuse() -> None:
        with launched(None, Console()) as (_, console):
            console.print("a line")
            warn("a warning")
            raise OptionError("the first one says this too")

    with pytest.raises(SystemExit) as ended:
        refuse()
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "")
