"""The formats by name, and the table of the documentation that is printed from them.

One module holds one format whole: how it is recognized, parsed and rendered, and what it keeps. `contract` says what a
format is. `python -m moongate.interop` writes the table into docs/formats.md, and the tests hold each format to it.
"""

from collections.abc import Mapping

from moongate.errors import OptionError
from moongate.interop.formats.adobe import ADOBE
from moongate.interop.formats.compvis import COMPVIS
from moongate.interop.formats.contract import Format
from moongate.interop.formats.diffusers import DIFFUSERS
from moongate.interop.formats.embedding import EMBEDDING
from moongate.interop.formats.kohya import KOHYA
from moongate.interop.formats.lora import LORA
from moongate.interop.formats.moongate import MOONGATE

__all__ = ["FORMATS", "named_format", "table"]

FORMATS: Mapping[str, Format] = {
    form.name: form for form in (MOONGATE, ADOBE, COMPVIS, DIFFUSERS, LORA, KOHYA, EMBEDDING)
}
"""All formats by name."""

CHANGES_READ_AGAIN = {
    "exactly": "the same bits",
    "factors": "low-rank factors: the same bits; dense changes: cut to `--rank`, with a note about the loss",
    "rounded": "dense, each number within float32 rounding of the full weight",
    "no": "none",
}


def named_format(name: str) -> Format:
    """Return the format of that name.

    Raises:
        OptionError: There is no such format.
    """
    if name not in FORMATS:
        raise OptionError(f"There is no format {name!r}. Known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def table() -> str:
    """Return what each format is and what it keeps, as a Markdown table."""
    head = ("`--to`", "format", "content", "base model", "changes read again", "tokens read again", "provenance")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for form in FORMATS.values():
        base = "needed" if form.needs_base else "not needed"
        tokens = "the same bits" if form.keeps_names else "the same bits, without names"
        provenance = "kept" if form.keeps_provenance else "lost"
        changes = CHANGES_READ_AGAIN[form.keeps_changes]
        cells = (f"`{form.name}`", form.title, form.layout, base, changes, tokens, provenance)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
