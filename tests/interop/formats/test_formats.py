"""The table of the documentation."""

import re
from pathlib import Path

from moongate import interop
from moongate.interop import FORMATS
from moongate.interop.__main__ import TABLE


def test_the_table_of_the_documentation_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    written = TABLE.search(page)
    assert written, "docs/formats.md has lost its marks"
    assert written[0] == interop.table(), "run `python -m moongate.interop` in the root of the repository"
    assert all(re.search(rf"^\| `{name}` \|", page, re.MULTILINE) for name in FORMATS)
