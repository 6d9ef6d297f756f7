"""The command `moongate fleet`."""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress, TaskID

from moongate.cli.jobs import FleetJob, read_entries
from moongate.cli.options import WITHOUT_DEFAULT, OptionalInt, OptionalStr, Output, OutputOptions
from moongate.cli.terminal import plain, progress_bar, say
from moongate.errors import FleetError, OptionError, listed

if TYPE_CHECKING:
    from moongate.fleet import Assignment, Job, Status

__all__ = ["Fleet", "perform"]

KEPT: dict[str, Any] = {}
"""The model that this worker has loaded last."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Train and evaluate many concepts, on all GPUs or on a Ray cluster."""

    jobs: Annotated[Path, tyro.conf.Positional]
    """YAML or JSON file with a list of jobs. Each has a name, concepts (a list as in the file of `train --concepts`),
    options of `train` such as seed, and evaluate (true, or options of `evaluate`).
    To continue, give the same command again: finished jobs are skipped, and failed ones are tried again.
    So are those whose concept was removed."""
    out: Path = Path("concepts")
    """Folder for the concepts and their run folders. Its folder "jobs" shows the state of each job as files."""
    workers: OptionalInt = None
    """Jobs at the same time. Default: one for each device."""
    device: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, WITHOUT_DEFAULT] = ()
    """Device to compute on, such as cuda:1; may be repeated. Default: all GPUs, or the CPU if there is none."""
    ray: OptionalStr = None
    """Address of a Ray cluster to work on, such as 10.0.0.1:6379, or auto. All its computers must see --out."""
    output: Output = field(default_factory=OutputOptions)

    def __call__(self, console: Console) -> dict[str, Any]:
        from moongate.files import check_writable
        from moongate.fleet import run

        folder = self.out / "jobs"
        check_writable(folder / "status" / "any.json", overwrite=True)
        jobs = self._jobs(folder)
        devices = self._devices()
        self._queue_lost(jobs, console)
        with progress_bar(console) as progress:
            display = _Display(console=console, progress=progress)
            statuses = run(folder, jobs, perform, devices=devices, ray=self.ray, on_change=display)
        report = {"out": str(self.out), "jobs": [_report(status) for status in statuses]}
        failed = [f"{status.name}: {status.error}" for status in statuses if status.state == "failed"]
        paused = [status.name for status in statuses if status.state == "paused"]
        if paused:
            say(
                console, f"Paused: {', '.join(paused)}. Move the files from {folder / 'paused'} to {folder / 'queued'}."
            )
        if failed:
            if self.output.json:
                print(dumps(report))
            raise FleetError(
                f"{len(failed)} of {len(jobs)} jobs failed. {listed(failed)} Their logs are in {folder / 'logs'}. The "
                "same command tries them again."
            )
        say(
            console, f"{sum(status.state == 'done' for status in statuses)} of {len(jobs)} jobs are done in {self.out}."
        )
        return report

    def _jobs(self, folder: Path) -> "list[Job]":
        """Read and check all jobs."""
        from moongate.fleet import Job, Queue, check_names

        place = os.path.relpath(self.jobs.parent, folder)  # both may be moved together
        jobs = [Job(name=entry["name"], settings={"job": entry, "folder": place}) for entry in read_entries(self.jobs)]
        check_names(jobs)
        for job in jobs:
            is_done = Queue(folder).state(job.name) == "done" and not self._lost(job)
            if not is_done and _read(job.settings, folder).train:
                self._check_free(job.name)
        return jobs

    def _lost(self, job: "Job") -> Path | None:
        """Return the concept of a job, or the record of one that only evaluates, if it is not there."""
        is_taught = job.settings["job"].get("concepts") is not None
        made = f"{job.name}.safetensors" if is_taught else f"{job.name}.evaluation/record.json"
        return None if (self.out / made).exists() else self.out / made

    def _queue_lost(self, jobs: "Sequence[Job]", console: Console) -> None:
        """Queue finished jobs again whose result was removed; a training goes on from its saved state."""
        from moongate.fleet import Queue

        queue = Queue(self.out / "jobs")
        for job in jobs:
            lost = self._lost(job)
            if lost and queue.state(job.name) == "done":
                say(console, f"{lost} is not there anymore, so the job {job.name!r} is done again.")
                with contextlib.suppress(FileNotFoundError):  # another fleet has just done the same
                    queue.move(job.name, "done", "queued")

    def _check_free(self, name: str) -> None:
        file = self.out / f"{name}.safetensors"
        if file.exists() and not file.with_suffix(".run").exists():
            raise OptionError(f"{file} exists already and was not made by a fleet. Give the job {name!r} another name.")

    def _devices(self) -> list[str]:
        """Return a device for each worker."""
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"--workers {self.workers} is too few. Give at least 1.")
        if self.ray:
            from moongate.fleet.cluster import connect

            if self.device:
                raise OptionError("--device would be ignored: Ray chooses the devices of its workers. Leave it out.")
            found = connect(self.ray)
        else:
            import torch

            gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
            known = ["cpu", *(["cuda"] if gpus else []), *gpus]
            if missing := [device for device in self.device if device not in known]:
                raise OptionError(f"There is no device {missing[0]!r}. Known: {', '.join(known)}.")
            found = [*self.device] or gpus or ["cpu"]
        return [found[index % len(found)] for index in range(self.workers or len(found))]


def perform(assignment: "Assignment") -> dict[str, Any]:
    """Do a job of the fleet, in a worker: train, continuing from the last saved state, then evaluate."""
    console = Console(width=100)
    job = _read(
        assignment.settings,
        assignment.folder,
        device=assignment.device,
        kept=KEPT,
        on_step=lambda step: assignment.report(step.index, step.steps),
    )
    result = dict[str, Any]()
    if job.train and job.train.out:
        job.train(console)
        result["concept"] = job.train.out.name
    if job.evaluate:
        job.evaluate(console)
        record = loads((job.evaluate.out / "record.json").read_bytes())
        result |= {"evaluation": job.evaluate.out.name, "measures": record["measures"]}
    return result


def _read(settings: Any, folder: Path, **given: Any) -> FleetJob:
    """Return the job of settings in the folder of a fleet; it resumes if it has begun before."""
    from moongate.run_records import holds_run

    place = Path(os.path.normpath(folder / settings["folder"]))
    resumes = holds_run(folder.parent / f"{settings['job']['name']}.run")
    return FleetJob.read(settings["job"], folder=place, out=folder.parent, resume=resumes, **given)


def _report(status: "Status") -> dict[str, Any]:
    values = {"name": status.name, "state": status.state, "seconds": status.seconds, **status.result}
    return {**values, "error": status.error} if status.error else values


@dataclass(kw_only=True)
class _Display:
    """Shows a bar for all jobs and one for each that is running, and prints a line when a job ends."""

    console: Console
    progress: Progress
    bars: dict[str, TaskID] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = self.progress.add_task("All jobs", total=None, note="")
        self.began, self.first_share = time.monotonic(), 0.0

    def __call__(self, statuses: "Sequence[Status]") -> None:
        share = sum(status.share for status in statuses)
        if not self.states:
            self.first_share = share
        self.progress.update(self.total, completed=share, total=len(statuses))
        over = sum(status.state in ("done", "failed") for status in statuses)
        for status in statuses:
            before = self.states.get(status.name)
            self.states[status.name] = status.state
            self._bar(status)
            if before and before != status.state and status.state in ("done", "failed", "paused"):
                left = self._left(len(statuses) - share, share)
                text = f"{status.name}: {status.state} after {_duration(status.seconds)}"
                say(self.console, f"{text} ({over} of {len(statuses)} jobs{left})")

    def _bar(self, status: "Status") -> None:
        if status.state == "running":
            bar = self.bars.get(status.name)
            if bar is None:
                bar = self.bars[status.name] = self.progress.add_task(plain(status.name), total=None, note="")
            self.progress.update(bar, completed=status.done, total=status.total or None)
        elif status.name in self.bars:
            self.progress.remove_task(self.bars.pop(status.name))

    def _left(self, remaining: float, share: float) -> str:
        gained = share - self.first_share
        if remaining <= 0 or gained <= 0:
            return ""
        return f", about {_duration((time.monotonic() - self.began) * remaining / gained)} left"


def _duration(seconds: float) -> str:
    """Return a time for people to read."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
