"""Measure the records that are missing, then write the tables: `python -m experiments [names] [--workers 2]`.

`--plan` says what is missing and how long it will take, and measures nothing.

Records are read from experiments/results/records.jsonl. A new record is written to runs/tables/records as soon as it is
measured, so that an interrupted run continues, and all new ones are moved into that file at the end, or by
`--render-only`, which measures nothing. The workers are a fleet: when one dies or a record fails, the others go on;
runs/tables/jobs/logs has what they print. A record of other weights of pocket is measured again; delete the line of a
record to measure it again. Concepts and pictures are kept in runs/tables.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.measuring import Measuring
from experiments.plan import planned
from experiments.records import Record, Results
from experiments.study import SEEDS, Size, Study
from moongate.errors import OptionError
from moongate.files import exclusive, is_held, write_atomically
from moongate.fleet import Job, Status, run
from moongate.limits import check_count
from recipe.command import command

EXPERIMENTS = (
    "table1_single",
    "fig3_weights",
    "fig12_spectrum",
    "fig13_compression",
    "table1_pairs",
    "table_several",
    "merge_ablation",
    "fig8_alignment",
    "fig6_side_by_side",
    "fig5_forgetting",
    "fig9_styles",
    "fig10_editing",
    "fig11_failures",
    "fig16_attention",
    "table3_ablation",
    "table4_token",
    "fig15_category_word",
    "fig17_steps",
    "fig18_compressed",
    "fig19_textual_inversion",
    "fig20_long_prompts",
    "fig21_template",
    "fig_layers",
    "table5_unrelated",
    "orderings",
)
"""In the order in which they run; later ones use the concepts that earlier ones have trained."""
ON_REQUEST = ("paper_steps",)
"""Experiments that take hours; they run only when they are named."""


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
    seeds: int = len(SEEDS)
    """How many seeds to run."""
    plan: bool = False
    """Measure nothing and write nothing; print what is missing and the core hours that it will take."""
    render_only: bool = False
    """Measure nothing; move what an interrupted run left into the file of records, and write the tables."""
    size: Size = field(default_factory=Size)


def main(options: Options) -> None:
    """Measure and write the tables."""
    known = (*EXPERIMENTS, *ON_REQUEST)
    if unknown := sorted(set(options.names) - set(known)):
        raise OptionError(f"There is no experiment {unknown[0]!r}. Known: {', '.join(known)}.")
    if not 1 <= options.seeds <= len(SEEDS):
        raise OptionError(f"There are {len(SEEDS)} seeds, not {options.seeds}. Give a number from 1 to {len(SEEDS)}.")
    check_count("workers", options.workers)
    names = options.names or EXPERIMENTS
    if options.plan:
        by_name = {name: _of_seeds(_records([name]), options.seeds) for name in options.names or known}
        print(planned(_results(options), by_name, on_request=() if options.names else ON_REQUEST))
        return
    failed = [] if options.render_only else _run(names, options)
    _fold(options)
    _write(_results(options), options.results)
    if failed:
        raise SystemExit("\n".join(f"{status.name} failed: {status.error}" for status in failed))


def _results(options: Options) -> Results:
    return Results(file=options.records, new=options.folder / "records", size=options.size)


def _run(names: Sequence[str], options: Options) -> list[Status]:
    """Measure the missing records, those of the first seed first, and return which failed."""
    results = _results(options)
    missing = sorted(results.missing(_of_seeds(_records(names), options.seeds)), key=_seed)
    records = {record.key.replace("/", "-"): record for record in missing}
    study = Study.within(options.folder, options.size)
    measuring = Measuring(records=records, results=_results(options), folder=study.folder)
    jobs = [Job(name=name, settings={"record": record.key}) for name, record in records.items()]
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with exclusive(options.folder), Progress(*columns) as progress:
        task = progress.add_task("measuring", total=len(jobs))

        def show(statuses: Sequence[Status]) -> None:
            progress.update(task, completed=sum(status.state in ("done", "failed") for status in statuses))

        # The results say which records are missing; the jobs of an earlier run do not.
        shutil.rmtree(options.folder / "jobs", ignore_errors=True)
        devices = ["cpu"] * options.workers
        statuses = run(options.folder / "jobs", jobs, measuring, devices=devices, on_change=show)
    return [status for status in statuses if status.state == "failed"]


def _fold(options: Options) -> None:
    """Move new records into the one file, unless a run is measuring more: it moves them at its end."""
    if not _results(options).unfolded:
        return
    if is_held(options.folder):
        print(f"New records stay in {options.folder / 'records'} while another process measures; it moves them later.")
        return
    with exclusive(options.folder):
        _results(options).fold({record.key for record in _records((*EXPERIMENTS, *ON_REQUEST))})


def _records(names: Sequence[str]) -> list[Record]:
    """Return the records of experiments, each once."""
    return list(dict.fromkeys(record for name in names for record in import_module(f"experiments.{name}").records()))


def _of_seeds(records: Sequence[Record], count: int) -> list[Record]:
    """Return the records of the first seeds."""
    return [record for record in records if _seed(record) < count]


def _seed(record: Record) -> int:
    return getattr(record, "seed", 0)


def _write(results: Results, out: Path) -> None:
    """Write `tables.md` with every experiment whose records are there, and say how many the others lack."""
    parts = ["# The paper's tables and figures on pocket\n", _about(results)]
    records = _records(EXPERIMENTS)
    if stale := results.stale(records):
        parts.append(
            f"**{len(stale)} of {len(records)} records were measured on earlier weights of pocket.** "
            "`make tables` measures them again.\n"
        )
    requested = [name for name in ON_REQUEST if not results.absent(_records([name]))]
    for name in (*EXPERIMENTS, *requested):
        experiment = import_module(f"experiments.{name}")
        absent = [record for record in results.absent(experiment.records()) if not _seed(record)]
        parts.append(f"## {experiment.TITLE}\n")
        if absent:
            print(f"{name}: {len(absent)} records are missing, such as {absent[0].key}")
        if absent and not getattr(experiment, "PARTIAL", False):
            parts.append(f"Not measured yet: {len(absent)} records are missing.\n")
        else:
            parts.append(experiment.report(results, out))
    write_atomically(out / "tables.md", "\n".join(parts).encode())
    print(f"Wrote {out / 'tables.md'}")


def _about(results: Results) -> str:
    size, precisions = results.size, results.precisions(_records(EXPERIMENTS))
    counts = " and ".join(f"{count} records in {precision}" for precision, count in sorted(precisions.items()))
    return (
        "Written by `python -m experiments` (`make tables`) from `experiments/results/records.jsonl`. "
        f"One subject: {size.count} picture of each of 20 prompts; several: {size.pair_count} of each of 12; KID: "
        f"{size.references} real pictures; sampling: {size.sampling.scheduler}, {size.sampling.steps} steps, guidance "
        f"{size.sampling.guidance:g}; {counts or 'no records'}. `experiments/study.py` holds the steps and learning "
        "rates of the methods. Text alignment and image alignment are cosines in the features of the named network; "
        "image alignment is measured against pictures held out from training. Compare these values with one another, "
        "not with those of the paper. [findings.md](findings.md) says what they mean.\n"
    )


if __name__ == "__main__":
    command(Options, main, description=__doc__)
