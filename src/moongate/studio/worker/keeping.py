"""Answers for the page Library: concepts from and to other programs' files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moongate.studio.worker.bench import Bench

__all__ = ["export_concept", "import_concept"]


def import_concept(
    bench: Bench, source: str, out: str, tokens: Sequence[str] = (), categories: Sequence[str] = ()
) -> dict[str, Any]:
    """Make a concept file of any file or folder that can be read.

    Args:
        bench: The worker.
        source: The file, or the folder of files that belong together.
        out: The concept file to write.
        tokens: New names for the tokens, in the file's order.
        categories: Categories of the subjects, in the file's order.

    Returns:
        `format`, its title, and `notes`, what of the file the concept does not hold.

    Raises:
        ConceptFileError: The file cannot be read, or would change nothing.
        OptionError: There is a file at `out`, or names are given that do not fit.
    """
    from moongate.files import check_writable
    from moongate.interop import recognize

    check_writable(Path(out), overwrite=False)
    recognized = recognize(Path(source))
    needs_base = bool(recognized.parts.weights or recognized.parts.subtracted)
    base = bench.backbone(recognized.base or None) if needs_base else None
    imported = recognized.concept(base=base, tokens=tokens, categories=categories)
    imported.concept.save(Path(out))
    return {"format": recognized.format.title, "notes": list(imported.notes)}


def export_concept(bench: Bench, file: str, to: str, out: str) -> dict[str, Any]:
    """Write a concept in another format; what an earlier export wrote there is replaced.

    Returns:
        `files`, the paths that were written, and `notes`, what they do not hold.

    Raises:
        OptionError: There is no such format, or it cannot hold the concept.
    """
    from moongate import interop

    target = interop.named_format(to)
    imported = bench.imported(file)
    base = bench.backbone(imported.concept.base or None) if target.needs_base else None
    options = interop.WriteOptions(base=base)
    written = interop.write(imported.concept, Path(out), to=to, options=options, overwrite=True)
    return {"files": [str(path) for path in written.files], "notes": [*imported.notes, *written.notes]}
