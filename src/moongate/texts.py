"""JSON and YAML from files, limited in length and depth, so that every text that cannot be read is a ValueError.

The parsers of other libraries end in many kinds of exceptions: deep nesting exhausts the stack, and a few YAML aliases
stand for more memory than there is.
"""

import json
from typing import Any

from moongate.limits import MAX_DEPTH, MAX_TEXT_BYTES

__all__ = ["parse_json", "parse_yaml"]


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: The text is no JSON, is longer than `MAX_TEXT_BYTES` or deeper than `MAX_DEPTH`, or holds characters
            that UTF-8 cannot hold.
    """
    _check_length(text)
    try:
        return _checked(json.loads(text))
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text of plain lists, mappings and scalars. Aliases are refused.

    Raises:
        ValueError: The text is no such YAML, is longer than `MAX_TEXT_BYTES` or deeper than `MAX_DEPTH`, or holds
            characters that UTF-8 cannot hold.
    """
    import yaml

    _check_length(text)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it uses the alias *{event.anchor}; write the value again instead")
        return _checked(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"it holds a value that YAML cannot have ({error})") from error


def _check_length(text: str | bytes) -> None:
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"it is longer than {MAX_TEXT_BYTES // 10**6} million characters")


def _checked(value: Any) -> Any:
    """Return the value, unless it is too deep or holds a character that UTF-8 cannot hold."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
            elif isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list | tuple | set):
                below += item
        if not below:
            return value
        level = below
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
