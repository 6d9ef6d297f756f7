"""Run many seeded cases, as `make fuzz` does, and print how those of each kind ended.

Each case is one line of a log, so that a run that was stopped goes on where it was. Failed cases of the log are run
again first with `--again`. A case that touches files that are not its own ends the run at once.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from conftest import make_tiny_model
from fuzz.cases import KINDS, run_case, write_seeds
from fuzz.children import outcome
from moongate.backbone import Backbone

__all__ = ["Cases", "opened"]


class Cases:
    """The seeds of all cases in one folder, with a file that no case may touch."""

    def __init__(self, folder: Path, tiny: Backbone, tiny_folder: Path) -> None:
        self._folder, self._seeds, self._canary = folder, folder / "seeds", folder / "canary"
        self._seeds.mkdir()
        self._canary.mkdir()
        (self._canary / "canary").write_text("alive")
        write_seeds(self._seeds, tiny, tiny_folder)
        self._before = self._state()

    def run(self, number: int) -> dict[str, object]:
        """Run a case and return its record."""
        kind = list(KINDS)[number % len(KINDS)]
        place = self._folder / "case"
        place.mkdir()
        result = outcome(lambda: run_case(kind, number, self._seeds, place), self._folder / "report")
        shutil.rmtree(place)
        if self._state() != self._before:
            raise RuntimeError(f"{kind} {number} touched files that are not its own: {self._state()}")
        sizes = {"seconds": round(result.seconds, 2), "megabytes": round(result.megabytes)}
        return {"number": number, "kind": kind, "wrong": result.wrong, **sizes}

    def _state(self) -> list[tuple[str, int, int]]:
        """Return names, sizes and times of all files that cases may only read."""
        files = [path for top in (self._seeds, self._canary) for path in top.rglob("*")]
        return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in files)


@contextmanager
def opened() -> Iterator[Cases]:
    """Write the seeds of all cases into a temporary folder."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = make_tiny_model(folder / "tiny", seed=0)
        yield Cases(folder, Backbone.load(tiny, device="cpu"), tiny)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--log", type=Path, default=Path("build/fuzz.jsonl"))
    parser.add_argument("--again", action="store_true", help="run the failed cases of the log again")
    parser.add_argument("--only", type=int, nargs="*", help="run these cases, and keep no log")
    options = parser.parse_args(arguments)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in options.log.read_text().splitlines()] if options.log.is_file() else []
    with opened() as cases:
        if options.only is not None:
            records = [cases.run(number) for number in options.only]
        else:
            if options.again:
                records = [cases.run(record["number"]) if record["wrong"] else record for record in records]
                options.log.write_text("".join(json.dumps(record) + "\n" for record in records))
            with options.log.open("a") as log:
                for number in range(len(records), options.cases):
                    records.append(cases.run(number))
                    log.write(json.dumps(records[-1]) + "\n")
                    log.flush()
    _print(records)
    return int(any(record["wrong"] for record in records))


def _print(records: Sequence[dict[str, object]]) -> None:
    print(f"{'kind':12}{'cases':>7}{'failed':>8}{'longest s':>11}{'most MB':>9}")
    for kind in KINDS:
        own = [record for record in records if record["kind"] == kind]
        if own:
            failed = sum(bool(record["wrong"]) for record in own)
            longest, most = (max(record[key] for record in own) for key in ("seconds", "megabytes"))
            print(f"{kind:12}{len(own):7}{failed:8}{longest:11.1f}{most:9.0f}")
    for record in records:
        if record["wrong"]:
            print(f"\n{record['kind']} {record['number']}: {record['wrong']}")


if __name__ == "__main__":
    sys.exit(main())
