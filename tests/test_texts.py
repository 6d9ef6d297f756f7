import pytest

from moongate.limits import MAX_TEXT_BYTES
from moongate.texts import parse_json, parse_yaml


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
        "!!int x",
        "!!bool x",
        "!!float x",
        "!!timestamp x",
        "!!python/object/apply:os.system [ls]",
        '"\\U00110000"',
        "9" * 5000,
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
