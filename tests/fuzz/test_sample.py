"""A seeded sample of mutated files: each is read, or refused by an error of ours, in time and memory.

`FUZZ=10000 pytest tests/fuzz` runs as many cases, and continues where an earlier run of the same folder was stopped
(`FUZZ_DONE`, by default build/fuzz.txt).
"""

import os
import warnings
from pathlib import Path

from fuzz.cases import KINDS, run_case, write_seeds
from fuzz.children import outcome
from moongate.backbone import Backbone

CASES = int(os.environ.get("FUZZ", "0"))
SAMPLE = 8


def test_mutated_files_are_read_or_refused_in_time_and_memory(
    tiny: Backbone, tiny_folder: Path, tmp_path: Path
) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    write_seeds(seeds, tiny, tiny_folder)
    canary = tmp_path / "canary"
    canary.write_text("alive")
    done = Path(os.environ.get("FUZZ_DONE", "build/fuzz.txt"))
    first = int(done.read_text()) if CASES and done.is_file() else 0
    failures = []
    kinds = list(KINDS)
    for number in range(first, CASES or SAMPLE * len(kinds)):
        kind, place = kinds[number % len(kinds)], tmp_path / f"{number}"
        place.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong = outcome(
                lambda kind=kind, place=place, number=number: run_case(kind, number, seeds, place), tmp_path / "report"
            )
        if wrong:
            failures.append(f"{kind} {number}: {wrong}")
        if CASES and number % 50 == 49:
            done.parent.mkdir(exist_ok=True)
            done.write_text(str(number + 1))
    assert canary.read_text() == "alive"
    assert not failures, f"{len(failures)} failures\n" + "\n\n".join(failures[:12])
