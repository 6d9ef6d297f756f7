"""What a concept file says about itself: checks of it before anything uses it, and what is taken from it."""

import math
from collections.abc import Mapping
from typing import Any

from moongate.limits import MAX_CAPTION_CHARACTERS, MAX_TOKENS

__all__ = ["check_provenance", "free_rare_token", "names_of_edits"]


def check_provenance(value: Any) -> None:
    """Check the entries of a concept's header that other code uses.

    Args:
        value: What the header holds as JSON.

    Raises:
        KeyError: An entry is missing.
        TypeError or ValueError: An entry has another type, or is too long or out of range.
    """
    _check(isinstance(value, Mapping), "it must be an object")
    for key in ("base", "method"):
        _check_text(value[key], key)
    _check(isinstance(value["record"], Mapping), "the record must be an object")
    _check_texts(value["tokens"], "the tokens")
    _check(len(value["tokens"]) <= MAX_TOKENS, f"it has {len(value['tokens'])} tokens; at most {MAX_TOKENS} are read")
    _check(len(set(value["tokens"])) == len(value["tokens"]), "a token is listed twice")
    widths = value.get("token_widths", ())
    _check(isinstance(widths, list | tuple), "the token_widths must be a list")
    _check(all(_is_whole(width) and width > 0 for width in widths), "the token_widths must be whole numbers above 0")
    _check(isinstance(value["subjects"], list), "the subjects must be a list")
    _check(len(value["subjects"]) <= MAX_TOKENS, f"it has {len(value['subjects'])} subjects; at most {MAX_TOKENS}")
    for subject in value["subjects"]:
        _check(isinstance(subject, Mapping), "a subject must be an object")
        _check_text(subject["category"], "category")
        _check(subject.get("token") is None or isinstance(subject["token"], str), "a token must be text or null")
        _check_texts(subject["prompts"], "the prompts")
        _check_texts(subject.get("more_tokens", ()), "the more_tokens")
    _check_fingerprint(value["fingerprint"])
    _check_record(value["record"], len(value["subjects"]))


def free_rare_token(record: Mapping[str, Any], tokens: int) -> int:
    """Return the index of the first rare token after those that a concept's tokens began as.

    Args:
        record: The record of the concept.
        tokens: Number of its tokens.
    """
    following: int = record.get("rare_token", 0) + tokens  # in files without the next entry
    return int(record.get("next_rare_token", following))


def names_of_edits(record: Mapping[str, Any], subjects: int) -> list[str]:
    """Return the names of the edits of the base that a concept holds, which its record lists after its subjects."""
    return [facts["words"] for facts in record.get("rows", ())[subjects:]]


def _check_fingerprint(value: Any) -> None:
    _check(isinstance(value, Mapping), "the fingerprint must be an object")
    _check_text(value["layout"], "layout")
    norms = value["norms"]
    is_list = isinstance(norms, list | tuple)
    _check(is_list and all(isinstance(norm, int | float) for norm in norms), "the norms must be numbers")
    _check(all(-1e300 < norm < 1e300 and math.isfinite(norm) for norm in norms), "the norms must be finite")


def _check_record(record: Mapping[str, Any], subjects: int) -> None:
    for name in ("rare_token", "next_rare_token"):
        index = record.get(name, 0)
        _check(_is_whole(index) and 0 <= index < 2**31, f"{name} must be a whole number of 0 or more")
    contexts = record.get("contexts") or []
    _check(isinstance(contexts, list), "the contexts must be a list")
    _check(len(contexts) in (0, subjects), f"there are contexts for {len(contexts)} of {subjects} subjects")
    for texts in contexts:
        _check_texts(texts, "the contexts")
        _check(all(text.count("{}") == 1 for text in texts), "each context must have one {} for the subject")
    rows = record.get("rows", [])
    _check(isinstance(rows, list) and all(isinstance(facts, Mapping) for facts in rows), "the rows must be objects")
    _check_texts([facts["words"] for facts in rows], "the words of rows")


def _check_texts(value: Any, name: str) -> None:
    _check(isinstance(value, list | tuple), f"{name} must be a list")
    for text in value:
        _check_text(text, name)


def _check_text(value: Any, name: str) -> None:
    _check(isinstance(value, str), f"{name} must be text, not {type(value).__name__}")
    _check(
        len(value) <= MAX_CAPTION_CHARACTERS, f"{name} has {len(value)} characters; {MAX_CAPTION_CHARACTERS} are read"
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise ValueError(message)
