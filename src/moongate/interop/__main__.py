"""Write the table of formats into docs/formats.md: `python -m moongate.interop`, from the root of the repository."""

import re
from pathlib import Path

from moongate.files import write_atomically
from moongate.interop.formats import table

__all__ = ["BLOCK"]

BLOCK = re.compile(r"(?<=<!-- formats -->\n).*?(?=<!-- /formats -->)", re.DOTALL)
"""Where the table stands in the page."""

if __name__ == "__main__":
    page = Path("docs/formats.md")
    write_atomically(page, BLOCK.sub(lambda _: table(), page.read_text(encoding="utf-8")).encode())
