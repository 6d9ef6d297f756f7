from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from moongate.pages import letters
from moongate.pages.letters import draw_text, text_width_px

SIZE_PX = 24


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without fonts."""
    monkeypatch.setattr(letters, "SYSTEM_FONTS", ())
    monkeypatch.setattr(letters, "EMOJI_FONTS", ())
    letters._face_for.cache_clear()
    yield
    letters._face_for.cache_clear()


def drawn(text: str) -> np.ndarray:
    picture = Image.new("RGB", (600, 2 * SIZE_PX), "white")
    draw_text(picture, (0, 0), text, SIZE_PX)
    return np.array(picture)


def test_a_machine_without_fonts_has_the_letters_of_latin_greek_and_cyrillic(bare: None) -> None:
    texts = "größer žluťoučký kůň łódź ñandú çağ Tiếng Việt Ελληνικά Українська – … → “€” ☀ ♥ 😀"
    box = drawn("\U000fffff").tobytes()
    assert [letter for letter in texts if drawn(letter).tobytes() == box] == []
    assert [drawn(letter).tobytes() == box for letter in "猫ก"] == [True, True]


def test_a_letter_that_the_package_lacks_comes_from_the_first_font_that_has_it(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    font = square_font(tmp_path / "square.ttf", "猫")
    monkeypatch.setattr(letters, "SYSTEM_FONTS", ("no-such-font.ttf", str(font)))
    letters._face_for.cache_clear()
    cat, box = drawn("猫"), drawn("ก")
    assert not np.array_equal(cat, box)
    assert text_width_px("猫", SIZE_PX) == ImageFont.truetype(font, SIZE_PX).getlength("猫")
    assert text_width_px("a猫a", SIZE_PX) == pytest.approx(2 * text_width_px("a", SIZE_PX) + SIZE_PX)
    inked = np.flatnonzero((cat < 128).all(2).any(0))
    assert inked[-1] - inked[0] + 1 == pytest.approx(SIZE_PX / 2, abs=1)


def test_an_accent_stays_with_its_letter(bare: None) -> None:
    assert text_width_px("e\u0301", SIZE_PX) == pytest.approx(text_width_px("e", SIZE_PX), abs=0.5)


def square_font(path: Path, letter: str) -> Path:
    """Write a font that has one letter: a square of half the size."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for command, point in (("moveTo", (250, 0)), ("lineTo", (250, 500)), ("lineTo", (750, 500)), ("lineTo", (750, 0))):
        getattr(pen, command)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 250)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Square", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path
