"""Write the table of formats into docs/formats.md: run `python -m moongate.interop` in the root of the repository."""

import re
from pathlib import Path

from moongate.files import write_atomically
from moongate.interop.formats import table

__all__ = ["TABLE"]

TABLE = re.compile(r"(?<=<!-- formats -->\n).*?(?=<!-- /formats -->)", re.DOTALL)
"""The part of the page that holds the table."""

if __name__ == "__main__":
    page = Path("docs/formats.md")
    write_atomically(page, TABLE.sub(lambda _: table(), page.read_text(encoding="utf-8")).encode())
