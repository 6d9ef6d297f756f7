"""What a concept file is, in a few facts, read from the file without PyTorch: `moongate info` answers at once.

Only files that Moongate wrote and that are whole are read here; their checksum says so. `Concept.load` reads the others
and names what is wrong with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moongate.errors import ConceptFileError
from moongate.files import digest
from moongate.fingerprint import Fingerprint
from moongate.limits import CONCEPT_VERSION
from moongate.provenance import check_provenance
from moongate.tensor_bytes import CHECKSUM, StoredFile, header_bytes, read_header, read_stored, stored_checksum
from moongate.texts import parse_json

__all__ = ["FORMAT", "KEPT", "Summary", "is_concept", "read_summary"]

FORMAT = "moongate-concept"
"""The value of `format` in the header of a concept file."""
KEPT = "kept."
"""How the names of `Concept.kept` begin in a concept file."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The facts of a concept that need none of its numbers."""

    facts: Mapping[str, Any]
    """What `Concept.to_json` returns."""
    shapes: Sequence[tuple[int, ...]]
    """The shape of each changed weight."""
    ranks: Sequence[int]
    """The rank of each change that has low-rank factors."""
    hash: str
    """`Concept.hash`."""

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the base."""
        return Fingerprint.from_json(self.facts["fingerprint"])


def is_concept(path: Path) -> bool:
    """Return whether a file says that it is a concept file; nothing else of it is checked."""
    texts = read_header(path).get("__metadata__")
    return isinstance(texts, Mapping) and texts.get("format") == FORMAT


def read_summary(path: Path) -> Summary | None:
    """Return the facts of a concept file, or None for any file that must be read by `Concept.load`.

    Args:
        path: The file.
    """
    if not is_concept(path):
        return None
    try:
        stored = read_stored(path)
        text = stored.texts["concept"]
        if int(stored.texts["version"]) > CONCEPT_VERSION or not _is_whole(stored, text):
            return None
        facts = parse_json(text)
        check_provenance(facts)
        shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
        changes = {name: shape for name, shape in shapes.items() if not name.startswith(("token.", KEPT))}
        ups = {name.removesuffix(".up"): shape for name, shape in changes.items() if name.endswith(".up")}
        dense = [shape for name, shape in changes.items() if name.endswith(".delta")]
        low_rank = [(shape[0], changes[f"{name}.down"][1]) for name, shape in ups.items()]
    except (ConceptFileError, LookupError, TypeError, ValueError):
        return None
    texts = {key: value for key, value in stored.texts.items() if key != CHECKSUM}
    return Summary(
        facts=facts,
        shapes=[*dense, *low_rank],
        ranks=[shape[1] for shape in ups.values()],
        hash=_hash(stored, texts),
    )


def _hash(stored: StoredFile, texts: Mapping[str, str]) -> str:
    """Return the digest of the file without its checksum and without what a merge kept."""
    entries: dict[str, Any] = {}
    parts: list[bytes] = []
    begin = 0
    for name, tensor in stored.tensors.items():
        if not name.startswith(KEPT):
            end = begin + len(tensor.data)
            entries[name] = {**stored.entries[name], "data_offsets": [begin, end]}
            parts.append(bytes(tensor.data))
            begin = end
    return digest(header_bytes(entries, texts), *parts)


def _is_whole(stored: StoredFile, text: str) -> bool:
    """Return whether the checksum in the header is that of the content."""
    return stored.texts.get(CHECKSUM) == stored_checksum(stored.tensors, text)
