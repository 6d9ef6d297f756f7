"""A folder of concept files from which a prompt takes what it names.

An index file in the folder keeps the tokens of each file. It is made and mended by itself: a file is read again when
its size or time has changed, and then only its header, so hundreds of files cost one listing of the folder. Merges of
what prompts name together are kept by content.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from moongate.backbone.text import folded
from moongate.concept import FORMAT
from moongate.errors import ConceptFileError, OptionError, TokenError, listed
from moongate.extras import versions
from moongate.files import digest, write_atomically
from moongate.fingerprint import Fingerprint
from moongate.merging import MergeOptions
from moongate.provenance import check_provenance
from moongate.tensor_files import CHECKSUM, read_texts
from moongate.texts import parse_json, read_text

__all__ = ["Entry", "Library", "merge_file"]

INDEX = ".moongate-library.json"
VERSION = 2
"""Version of the index; another one is made anew."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the index keeps of one file."""

    file: str
    size: int
    modified_ns: int
    tokens: tuple[str, ...] = ()
    content: str = ""
    """What identifies the content: the checksum in the file's header."""
    error: str = ""
    """Why the file cannot be used; empty if it can."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """The concept files of a folder."""

    folder: Path
    entries: tuple[Entry, ...]
    """All `.safetensors` files, sorted by name."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the index of a folder, and the headers of files that are new or have changed.

        Raises:
            OptionError: There is no such folder.
        """
        if not folder.is_dir():
            raise OptionError(f"There is no folder of concepts {folder}. Check the path.")
        known = _kept(folder / INDEX)
        entries = []
        for path in sorted(folder.glob("*.safetensors")):
            try:
                facts = path.stat()
            except OSError as error:
                if path.is_symlink():  # else it was removed in the meantime
                    reason = f"it links to no file ({error.strerror})."
                    entries.append(Entry(file=path.name, size=0, modified_ns=0, error=reason))
                continue
            entry = known.get(path.name)
            if entry is None or (entry.size, entry.modified_ns) != (facts.st_size, facts.st_mtime_ns):
                entry = _read(path, size=facts.st_size, modified_ns=facts.st_mtime_ns)
            entries.append(entry)
        if entries != [*known.values()]:
            content = json.dumps({"version": VERSION, "files": [asdict(entry) for entry in entries]}, indent=1)
            with contextlib.suppress(OptionError):  # a folder that cannot be written is read again each time
                write_atomically(folder / INDEX, content.encode())
        return cls(folder=folder, entries=tuple(entries))

    @property
    def broken(self) -> list[str]:
        """A sentence for each file that cannot be used."""
        return [f"{entry.file} is skipped: {entry.error}" for entry in self.entries if entry.error]

    def named_in(self, prompts: Sequence[str]) -> list[Entry]:
        """Return the files whose tokens occur in prompts, sorted by name.

        Raises:
            TokenError: A prompt names a token that is in no file, or none of the prompts names any.
            OptionError: Two files have a token that a prompt names.
        """
        owners: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for token in entry.tokens:
                owners.setdefault(folded(token), []).append(entry)
        found: dict[str, Entry] = {}
        for prompt in map(folded, prompts):
            missing = [token for token in re.findall(r"<[^<>\s]+>", prompt) if token not in owners]
            if missing:
                raise TokenError(f"{missing[0]} in {prompt!r} is in no file of {self.folder}. {self._known(owners)}")
            for token in owners:
                if not _is_in(prompt, token):
                    continue
                if len(owners[token]) > 1:
                    files = listed([entry.file for entry in owners[token]])
                    raise OptionError(
                        f"{token} is in several files of {self.folder}: {files}. Move all but one out of the folder, "
                        "or rename it with `moongate convert FILE --to moongate --token NAME --out OTHER`."
                    )
                found[owners[token][0].file] = owners[token][0]
        if not found:
            raise TokenError(f"No prompt names a token of {self.folder}. {self._known(owners)}")
        return [found[file] for file in sorted(found)]

    def paths(self, entries: Iterable[Entry]) -> list[Path]:
        """Return the paths of files."""
        return [self.folder / entry.file for entry in entries]

    def _known(self, owners: Iterable[str]) -> str:
        return f"Its tokens: {listed(sorted(owners)) or 'none'}."


def _is_in(prompt: str, token: str) -> bool:
    """Return whether a prompt has a token, as the tokenizer reads it: brackets end a word, as in "<rex>s"."""
    if token not in prompt or re.fullmatch("<.*>", token):
        return token in prompt
    return re.search(rf"(?<![\w<]){re.escape(token)}(?![\w>])", prompt) is not None


def merge_file(entries: Sequence[Entry], base: Fingerprint, cache: Path) -> Path:
    """Return where the merge of files is kept; its name follows from their contents, the base, and what merges them."""
    facts = (repr(base), repr(MergeOptions()), repr(versions()))
    key = digest(*(entry.content for entry in entries), *facts, length=24)
    return cache / "library" / f"{key}.safetensors"


def _kept(index: Path) -> dict[str, Entry]:
    """Return the entries of an index by file; none if it is missing, damaged, or of another version."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        facts = parse_json(read_text(index))
        if facts["version"] == VERSION:
            entries = [_entry(**entry) for entry in facts["files"]]
            return {entry.file: entry for entry in entries}
    return {}


def _entry(*, tokens: Iterable[str], content: str, error: str, **facts: Any) -> Entry:
    return Entry(tokens=tuple(map(str, tokens)), content=str(content), error=str(error), **facts)


def _read(path: Path, **facts: Any) -> Entry:
    """Return the entry of a file, from its header."""
    try:
        texts = read_texts(path)
        if texts.get("format") != FORMAT:
            raise ConceptFileError("it is no Moongate concept. Make one of it with `moongate convert`.")
        concept = parse_json(texts["concept"])
        check_provenance(concept)
        tokens = tuple(map(str, concept["tokens"]))
        content = texts.get(CHECKSUM) or digest(repr(texts), repr(facts))
        return Entry(file=path.name, tokens=tokens, content=content, **facts)
    except (ConceptFileError, KeyError, TypeError, ValueError) as error:
        return Entry(file=path.name, error=str(error), **facts)
