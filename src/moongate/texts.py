"""Texts, JSON and YAML from files, limited in length and depth, so that each that cannot be read is a ValueError.

The parsers of other libraries end in many kinds of exceptions: deep nesting exhausts the stack, and a few YAML aliases
stand for more memory than there is.
"""

import datetime
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moongate.files import read_regular
from moongate.limits import MAX_CAPTION_CHARACTERS, MAX_DEPTH, MAX_INTEGER, MAX_TEXT_BYTES, MAX_YAML_CHARACTERS

__all__ = ["is_encodable", "parse_json", "parse_yaml", "read_lines", "read_listing", "read_text"]


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can hold a text; not the lone surrogates that Python makes of other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is not a regular file, has more than `MAX_TEXT_BYTES`, or is not in UTF-8.
    """
    content = read_regular(path, at_most=MAX_TEXT_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error.reason} at byte {error.start})") from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, each a caption or a prompt, without empty ones.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It cannot be read as `read_text` does, or a line has more than `MAX_CAPTION_CHARACTERS`.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    longest = max(map(len, lines), default=0)
    if longest > MAX_CAPTION_CHARACTERS:
        raise ValueError(f"a line has {longest} characters; at most {MAX_CAPTION_CHARACTERS} are read")
    return lines


def read_listing(path: Path) -> Any:
    """Return the value of a file that a user writes: of JSON where it is named so, else of YAML.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It cannot be read as `read_text`, `parse_json` and `parse_yaml` do, or has a key twice in one entry.
    """
    is_json = path.suffix.lower() == ".json"
    return parse_json(read_text(path), takes_repeated_keys=False) if is_json else parse_yaml(read_text(path))


def parse_json(text: str | bytes, *, takes_repeated_keys: bool = True) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        takes_repeated_keys: Whether the last value of a key counts, as programs expect of one another's files.

    Raises:
        ValueError: The text is not JSON, is longer than `MAX_TEXT_BYTES` or deeper than `MAX_DEPTH`, or holds
            characters that UTF-8 cannot hold, numbers beyond `MAX_INTEGER` or keys that are not taken.
    """
    _check_length(text, MAX_TEXT_BYTES)
    try:
        return _checked(json.loads(text, object_pairs_hook=None if takes_repeated_keys else _entry))
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text of plain lists, mappings and scalars, without aliases, tags and repeated keys.

    Raises:
        ValueError: The text is no such YAML, is longer than `MAX_YAML_CHARACTERS` or deeper than `MAX_DEPTH`, or holds
            dates, characters that UTF-8 cannot hold, or numbers beyond `MAX_INTEGER`.
    """
    import yaml

    _check_length(text, MAX_YAML_CHARACTERS)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it uses the alias *{event.anchor}; write the value again instead")
            if getattr(event, "tag", None):
                raise ValueError(f"it uses the tag {event.tag}; write plain values")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
            if isinstance(event, yaml.ScalarEvent) and event.style is None and _is_long_number(event.value):
                raise ValueError(f"it holds a number of {len(event.value)} characters; write text in quotes")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_keys(node)
        return None if node is None else _checked(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem}{place}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"it holds a value that YAML cannot have ({error})") from error


def _check_length(text: str | bytes, at_most: int) -> None:
    if len(text) > at_most:
        raise ValueError(f"it is longer than {at_most // 10**6} million characters")


def _check_keys(root: Any) -> None:
    """Raise ValueError for a key that a mapping of YAML has twice: of its values only the last would count."""
    level = [root] if root else []
    for node in level:
        if node.id == "mapping":
            _check_different(key.value for key, _ in node.value if key.id == "scalar")
            level += [value for _, value in node.value]
        elif node.id == "sequence":
            level += node.value


def _entry(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON as a dictionary. Raises ValueError for a key that it has twice."""
    _check_different(key for key, _ in pairs)
    return dict(pairs)


def _check_different(keys: Iterable[str]) -> None:
    if twice := next((key for key, count in Counter(keys).items() if count > 1), None):
        raise ValueError(f"it has {twice!r} twice in one entry; begin each entry of a list anew, in YAML with a dash")


def _is_long_number(text: str) -> bool:
    """Return whether a plain scalar may be a number that takes long to compute, such as 1:1:1:1 to the base 60."""
    return len(text) > 100 and text[:1] in "+-.0123456789"


def _checked(value: Any) -> Any:
    """Return the value, unless it is too deep, or holds a character that UTF-8 cannot hold or too large a number."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError(f"it holds a whole number of {item.bit_length()} bits; at most 64 are read")
            elif isinstance(item, datetime.date):  # which YAML makes of 2024-01-01
                raise ValueError(f"it holds the date {item}; write text in quotes")
            elif isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
        if not below:
            return value
        level = below
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
