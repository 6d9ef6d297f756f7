"""A seeded sample of changed files: each is read, or refused by an error of ours, in time and memory.

`make fuzz` runs ten thousand (`fuzz/__main__.py`). Numbers of cases that once failed stand in `MENDED`.
"""

from pathlib import Path

import pytest

from fuzz.__main__ import Cases
from fuzz.cases import KINDS
from moongate.backbone import Backbone

SAMPLE = 4
"""Cases of each kind."""
MENDED = (47, 165, 464, 802, 1144, 1565, 2820, 3192, 4015)


@pytest.fixture(scope="module")
def cases(shared_tiny: Backbone, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("cases"), shared_tiny, tiny_folder)


def test_changed_files_are_read_or_refused_in_time_and_memory(cases: Cases) -> None:
    records = [cases.run(number) for number in (*range(SAMPLE * len(KINDS)), *MENDED)]
    failed = [f"{record['kind']} {record['number']}: {record['wrong']}" for record in records if record["wrong"]]
    assert not failed, f"{len(failed)} failures\n" + "\n\n".join(failed[:12])
