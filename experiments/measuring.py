"""Measure records in the workers of a fleet."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from experiments.records import Record, Results
from experiments.study import Study
from moongate.fleet import Assignment

__all__ = ["Measuring"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measuring:
    """The work of a fleet whose jobs are records; a worker keeps what it has loaded from one record to the next."""

    records: Mapping[str, Record]
    """The records to measure, by the names of their jobs."""
    results: Results
    folder: Path
    """Folder of concepts and pictures."""

    def __call__(self, assignment: Assignment) -> dict[str, Any]:
        """Measure a record and keep it."""
        torch.set_num_threads(1)
        record = self.records[assignment.name]
        began = time.monotonic()
        values = record.measure(self.study)
        self.results.put(record, {**values, "seconds": round(time.monotonic() - began, 1)})
        return {}

    @cached_property
    def study(self) -> Study:
        """The backbone and the concepts of this worker."""
        return Study(folder=self.folder, size=self.results.size)
