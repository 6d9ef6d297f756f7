import os
from pathlib import Path

import pytest

from moongate.limits import MAX_TEXT_BYTES, MAX_YAML_CHARACTERS
from moongate.texts import parse_json, parse_yaml, read_listing, read_text


def test_a_text_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert read_text(tmp_path / "a.txt") == "café"


def test_other_encodings_devices_and_files_without_end_are_value_errors(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("café".encode("latin1"))
    with pytest.raises(ValueError, match="not text in UTF-8 .* at byte 3"):
        read_text(tmp_path / "latin")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            read_text(path)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(50 * 2**30)  # takes no room on the disk
    with pytest.raises(ValueError, match="it has 53687 MB; at most 5 are read"):
        read_text(tmp_path / "long")


def test_plain_json_and_yaml_are_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, null, "\xc3\xa9"]}') == {"a": [1, 2.5, None, "é"]}
    assert parse_yaml("- pictures: bear\n  category: teddy bear\n") == [{"pictures": "bear", "category": "teddy bear"}]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 70 + "]" * 70,
        '{"a":' * 900 + "1" + "}" * 900,
        "[" + "9" * 5000 + "]",
        str(2**64 + 1),
        '"\\ud800"',
        '{"\\udfff": 1}',
        "{torn",
        " " * (MAX_TEXT_BYTES + 1),
    ],
)
def test_json_that_cannot_be_used_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1000,
        "category: 2001-99-99",
        "2001-09-09: bear",
        "!!int x",
        "!!bool x",
        "!!float x",
        "!!timestamp x",
        "!!python/object/apply:os.system [ls]",
        '"\\U00110000"',
        "9" * 5000,
        "a: 0x" + "f" * 90,
        "1:" * 400_000 + "1",  # to the base 60, in quadratic time
        "!!int '1:1'",
        "!!set {a, b}",
        "!!binary AAAA",
        "- " * 70,
        "a" * (MAX_YAML_CHARACTERS + 1),
        '"\\ud800"',
        "a: &x [1, 1]\nb: [*x, *x]",
        "&x [*x]",
        "? [1]\n: 2",
        "{a: 1, <<: 3}",
        "a: b: c",
        "\x00",
    ],
)
def test_yaml_that_cannot_be_used_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_yaml(text)


def test_a_key_that_yaml_would_read_twice_is_named(tmp_path: Path) -> None:
    """A forgotten dash makes one entry of two, of which the first would be lost."""
    with pytest.raises(
        ValueError, match="it has 'pictures' twice in one entry; begin each entry of a list anew, in YAML with a dash"
    ):
        parse_yaml("- pictures: a\n  token: b\n  pictures: c\n")
    assert parse_yaml("- {a: 1, b: {a: 2}}\n- {a: 3}") == [{"a": 1, "b": {"a": 2}}, {"a": 3}]
    assert parse_yaml("# nothing") is None


def test_a_key_that_a_listing_in_json_has_twice_is_named_and_other_programs_may_repeat_theirs(tmp_path: Path) -> None:
    file = tmp_path / "concepts.JSON"
    file.write_text('[{"pictures": "a", "token": "b", "pictures": "c"}]')
    with pytest.raises(ValueError, match="it has 'pictures' twice in one entry"):
        read_listing(file)
    assert parse_json(file.read_text()) == [{"pictures": "c", "token": "b"}]
    file.write_text('[{"a": 1, "b": {"a": 2}}]')
    assert read_listing(file) == [{"a": 1, "b": {"a": 2}}]


def test_an_error_in_yaml_is_told_with_its_place() -> None:
    with pytest.raises(ValueError, match="^mapping values are not allowed here in line 2, column 5$"):
        parse_yaml("a: 1\nb: c: d")


def test_a_date_in_yaml_is_named(tmp_path: Path) -> None:
    """It would be another type than any that JSON has."""
    with pytest.raises(ValueError, match="^it holds the date 2024-01-02; write text in quotes$"):
        parse_yaml("- category: 2024-01-02")
    assert parse_yaml("- category: '2024-01-02'") == [{"category": "2024-01-02"}]
