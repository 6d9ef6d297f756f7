"""Measure the records that are missing, then write the tables: `python -m experiments [names] [--workers 2]`.

Records are read from experiments/results/records.jsonl. A new record is written to runs/tables/records as soon as it is
measured, so that an interrupted run continues, and all new ones are moved into that file at the end. A record of other
weights of pocket is measured again; delete the line of a record to measure it again. Concepts and pictures are kept in
runs/tables.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.records import Record, Results
from experiments.study import Size, Study
from moongate.files import write_atomically

EXPERIMENTS = (
    "table1_single",
    "fig3_weights",
    "fig12_spectrum",
    "fig13_compression",
    "table1_pairs",
    "fig8_alignment",
    "fig6_side_by_side",
    "fig16_attention",
    "table3_ablation",
    "table4_token",
    "fig17_steps",
    "table5_unrelated",
    "orderings",
)
"""In the order in which they run; later ones use the concepts that earlier ones have trained."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which experiments to run, and how."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Experiments to run, such as table3_ablation; all when none is named."""
    results: Path = Path("docs/results")
    """Folder of the tables and plots."""
    records: Path = Path("experiments/results/records.jsonl")
    """The file of all records."""
    folder: Path = Path("runs/tables")
    """Folder of new records, concepts and pictures."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes at once. Each uses one thread, so that results do not depend on their number."""
    seeds: int = 2
    """How many seeds to run."""
    render_only: bool = False
    """Measure nothing; write the tables from the records that there are."""
    size: Size = field(default_factory=Size)


_study: Study


def _begin(folder: Path, size: Size) -> None:
    global _study
    torch.set_num_threads(1)
    _study = Study(folder=folder, size=size)


def _measure(record: Record) -> dict[str, Any]:
    return record.measure(_study)


def main() -> None:
    """Measure and write the tables."""
    options = tyro.cli(Options, description=__doc__)
    if unknown := sorted(set(options.names) - set(EXPERIMENTS)):
        raise SystemExit(f"There is no experiment {unknown[0]!r}. Known: {', '.join(EXPERIMENTS)}.")
    names = options.names or EXPERIMENTS
    results = Results(file=options.records, new=options.folder / "records", size=options.size)
    if not options.render_only:
        _run(names, results, options)
        results.fold()
    _write(results, options.results)


def _run(names: Sequence[str], results: Results, options: Options) -> None:
    """Measure the missing records: all records of the first seed, then those of the second."""
    missing = sorted(results.missing(_records(names)), key=lambda record: getattr(record, "seed", 0))
    missing = [record for record in missing if getattr(record, "seed", 0) < options.seeds]
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # The names of concepts and pictures do not say which weights and precision they depend on; the folder does.
    folder = options.folder / f"{results.weights}-{options.size.dtype}"
    pool = ProcessPoolExecutor(options.workers, initializer=_begin, initargs=(folder, options.size))
    with Progress(*columns) as progress, pool:
        task = progress.add_task("measuring", total=len(missing))
        running = {pool.submit(_measure, record): record for record in missing}
        try:
            for done in as_completed(running):
                results.put(running[done], done.result())
                progress.update(task, advance=1, description=running[done].key)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _records(names: Sequence[str]) -> list[Record]:
    """Return the records of experiments, each once."""
    return list(dict.fromkeys(record for name in names for record in import_module(f"experiments.{name}").records()))


def _write(results: Results, out: Path) -> None:
    """Write `tables.md` with every experiment whose records are there, and say how many the others lack."""
    parts = ["# The paper's tables and figures on pocket\n", _about(results.size)]
    records = _records(EXPERIMENTS)
    if stale := results.stale(records):
        parts.append(
            f"**{len(stale)} of {len(records)} records were measured on earlier weights of pocket.** "
            "`make tables` measures them again.\n"
        )
    for name in EXPERIMENTS:
        experiment = import_module(f"experiments.{name}")
        absent = [record for record in results.absent(experiment.records()) if not getattr(record, "seed", 0)]
        parts.append(f"## {experiment.TITLE}\n")
        if absent:
            print(f"{name}: {len(absent)} records are missing, such as {absent[0].key}")
        if absent and not getattr(experiment, "PARTIAL", False):
            parts.append(f"Not measured yet: {len(absent)} records are missing.\n")
        else:
            parts.append(experiment.report(results, out))
    write_atomically(out / "tables.md", "\n".join(parts).encode())
    print(f"Wrote {out / 'tables.md'}")


def _about(size: Size) -> str:
    return (
        "Written by `python -m experiments` (`make tables`) from `experiments/results/records.jsonl`. "
        f"One subject: {size.count} picture of each of 20 prompts; a pair: {size.pair_count} of each of 12; KID: "
        f"{size.references} real pictures; sampling: {size.sampling.scheduler}, {size.sampling.steps} steps, guidance "
        f"{size.sampling.guidance:g}, in {size.dtype}. `experiments/study.py` holds the steps and learning rates of "
        "the methods. Text alignment and image alignment are cosines in the features of the named network; image "
        "alignment is measured against pictures held out from training. Compare these values with one another, not "
        "with those of the paper. [findings.md](findings.md) says what they mean.\n"
    )


if __name__ == "__main__":
    main()
