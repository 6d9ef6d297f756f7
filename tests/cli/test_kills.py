"""A command that is killed at any moment leaves whole files or none, earlier files as they were, and can run again.

Each run is a child of this process, which has all libraries and models in memory already, so that a run takes about a
second. It ends by SIGKILL at a random moment, or at a chosen one in which it writes: a flush to the disk or a rename.
"""

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from command_line import run
from conftest import write_pictures
from making import make_concept
from moongate.backbone import Backbone
from moongate.run_records import holds_run

RANDOM, INJECTED = 10, 2
"""Kills of each command at random moments, and while it writes."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command in a folder with two concepts, three photos and a model."""

    words: str
    out: str
    earlier: str
    """A command that writes other content to `out`."""
    at_once: bool = True
    """Whether all files of `out` are replaced together."""


TRAIN = (
    "train photos --category bear --token <x> --regularization none --batch 1 --steps 60 --model model "
    "--no-page --out x.safetensors"
)
CASES = {
    "train": Case(words=TRAIN, out="x.safetensors", earlier="convert a.safetensors --to moongate --out x.safetensors"),
    "merge": Case(
        words="merge a.safetensors b.safetensors --model model --out ab.safetensors",
        out="ab.safetensors",
        earlier="convert a.safetensors --to moongate --out ab.safetensors",
    ),
    "generate": Case(
        words="generate photo --model model --count 2 --steps 2 --out pictures",
        out="pictures",
        earlier="generate photo --model model --count 2 --steps 3 --out pictures",
        at_once=False,
    ),
    "retrieve": Case(
        words="retrieve search photo --model model --count 3 --out found",
        out="found",
        earlier="retrieve search photo --model model --count 2 --out found",
    ),
    "convert": Case(
        words="convert a.safetensors --to kohya --out lora",
        out="lora",
        earlier="convert a.safetensors --to kohya --rank 1 --out lora",
        at_once=False,
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A child has none of the threads of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def seeds(tiny_folder: Path, shared_tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a command runs. A concept keeps the path of its model, so that it must be a relative one."""
    folder = tmp_path_factory.mktemp("kills") / "seeds"
    folder.mkdir()
    shutil.copytree(tiny_folder, folder / "model")
    for name in ("a", "b"):
        make_concept(shared_tiny, tokens=(f"<{name}>",)).save(folder / f"{name}.safetensors")
    write_pictures(folder / "photos", count=3, seed=0)
    return folder


class Writes:
    """Counts the moments in which this process writes, and ends it at the `last`."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int | None = None) -> None:
        self.count, self._last = 0, last
        for name in ("fsync", "rename", "replace"):
            patch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, action: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
            return action(*arguments, **options)

        return counted


def in_child(words: str, folder: Path, *, write: int | None = None, seconds: float | None = None) -> int:
    """Run a command in a child, kill it at a write or after a time, and return its exit code."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            quiet = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            os.chdir(folder)
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
            torch.set_num_threads(1)  # PyTorch makes its threads anew in a child: here, before several threads ask
            Writes(pytest.MonkeyPatch(), write)
            run(*words.split())
            os._exit(0)
        os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(*places: Path) -> dict[str, str]:
    """Return the digest of each file by its name, without hidden files, which a kill may leave."""
    files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name[0] != "."}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_tears_no_file_loses_none_and_can_run_again(
    name: str, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, chance = CASES[name], random.Random(name)
    for place in ("earlier", "whole", "timed"):
        shutil.copytree(seeds, tmp_path / place)
    monkeypatch.chdir(tmp_path / "earlier")
    run(*case.earlier.split())
    earlier = contents(tmp_path / "earlier" / case.out)
    monkeypatch.chdir(tmp_path / "whole")
    with monkeypatch.context() as patch:
        writes = Writes(patch)
        run(*case.words.split())
    whole = contents(tmp_path / "whole" / case.out)
    assert set(earlier) <= set(whole)
    assert not earlier.items() <= whole.items()
    began = time.monotonic()
    assert in_child(case.words, tmp_path / "timed") == 0
    seconds = time.monotonic() - began

    inputs = [Path(name) for name in ("a.safetensors", "b.safetensors", "photos", "model")]
    untouched = contents(*(seeds / path for path in inputs))
    moments: list[int | None] = [None] * RANDOM + chance.sample(range(1, writes.count + 1), INJECTED)
    ended = resumed = tries = 0
    while moments:
        folder = tmp_path / str(tries)
        before = earlier if tries % 2 else {}
        shutil.copytree(tmp_path / "earlier" if before else seeds, folder)
        moment = {"write": moments[-1]} if moments[-1] else {"seconds": chance.uniform(0, seconds)}
        code = in_child(f"{case.words} --overwrite" if before else case.words, folder, **moment)
        assert code in (0, -signal.SIGKILL), folder.with_suffix(".log").read_text()
        left = contents(folder / case.out)
        assert all(digest in (before.get(file), whole.get(file)) for file, digest in left.items()), "torn"
        assert set(before) <= set(left), "lost"
        assert not case.at_once or left in (before, whole)
        assert contents(*(folder / path for path in inputs)) == untouched
        resumes = holds_run(folder / "x.run")
        again = f"{case.words}{' --overwrite' if left else ''}{' --resume' if resumes else ''}"
        assert in_child(again, folder) == 0, folder.with_suffix(".log").read_text()
        assert contents(folder / case.out) == whole, "other bytes after a kill"
        shutil.rmtree(folder)
        tries, ended, resumed = tries + 1, ended + (code == 0), resumed + resumes
        if code:
            moments.pop()
    print(f"{name}: {RANDOM + INJECTED} kills, {ended} ended before, {resumed} resumed, {seconds:.1f} s a run")
