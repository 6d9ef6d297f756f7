"""Draw text in any script on pictures: for each letter, the first font that has it.

Pillow's own font has the letters of ASCII alone. Therefore the package brings a part of DejaVu Sans 2.37 (119 kB), in
which a machine without fonts has Latin, Greek and Cyrillic letters, punctuation, some symbols and faces. It was made by
`pyftsubset DejaVuSans.ttf --no-hinting --notdef-outline --unicodes=...` with the code points 20-7E, A0-24F, 300-345,
370-3FF, 400-45F, 490-491, 1E00-1EFF, 2010-2027, 2030-203A, 20A0-20BF, 2100-2122, 2190-2199, 2212, 221E, 2248,
2260-2265, 2600-2607, 2639-2640, 2642, 2660-2667, 2713-2717, 2764, FFFD and 1F600-1F640.

For other scripts and for emoji, the fonts of the system are searched by file name, as Pillow does in the folders of
each system. A letter that no font has is drawn as a box.
"""

import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_text", "text_width_px"]

OWN_FONT = "DejaVuSans.ttf"
EMOJI_FONTS = ("NotoColorEmoji.ttf", "seguiemj.ttf", "Apple Color Emoji.ttc")
SYSTEM_FONTS = (
    # Chinese, Japanese and Korean: Linux, Windows, macOS.
    "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "YuGothM.ttc", "msyh.ttc", "malgun.ttf", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",
    # All others.
    "Arial Unicode.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "DejaVuSans.ttf", "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "Nirmala.ttc", "Nirmala.ttf",
    "NotoSansThai-Regular.ttf", "LeelawUI.ttf", "FreeSans.ttf", "unifont.otf",
)  # fmt: skip
BITMAP_SIZES_PX = (109, 160, 136)
"""Sizes of fonts that hold pictures of one size: Noto's and Apple's."""
FIRST_EMOJI = "\U0001f000"
NO_LETTER = "\U000fffff"
"""A code point without a letter: fonts draw their box for it."""


def text_width_px(text: str, size_px: int) -> float:
    """Return the width of one line of text in letters of a size, in pixels."""
    return sum(face.length(part) for face, part in _runs(text, size_px))


def draw_text(picture: Image.Image, left_top: tuple[float, float], text: str, size_px: int) -> None:
    """Draw one line of text in black on a picture of mode RGB, which is changed; the line is 1.2 sizes high."""
    x, top = left_top
    for face, part in _runs(text, size_px):
        face.draw(picture, (x, top + size_px), part)
        x += face.length(part)


@dataclass(frozen=True, eq=False)
class _Face:
    """A font at the size it is drawn in, and how much smaller it is shown."""

    font: ImageFont.FreeTypeFont
    scale: float = 1.0

    def has(self, letter: str) -> bool:
        """Return whether the font has a letter: one that it lacks looks like one that cannot exist."""
        return letter.isspace() or self._looks(letter) != self._looks(NO_LETTER)

    def _looks(self, letter: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(letter)
        return mask.size, bytes(mask)

    def length(self, text: str) -> float:
        return self.font.getlength(text) * self.scale

    def draw(self, picture: Image.Image, left_baseline: tuple[float, float], text: str) -> None:
        if self.scale == 1:
            draw = ImageDraw.Draw(picture)
            draw.text(left_baseline, text, font=self.font, fill="black", anchor="ls", embedded_color=True)
            return
        box = self.font.getbbox(text, anchor="ls")
        size = max(1, round((box[2] - box[0]) * self.scale)), max(1, round((box[3] - box[1]) * self.scale))
        large = Image.new("RGBA", (round(box[2] - box[0]), round(box[3] - box[1])))
        origin = (-box[0], -box[1])
        ImageDraw.Draw(large).text(origin, text, font=self.font, anchor="ls", embedded_color=True)
        small = large.resize(size, Image.Resampling.LANCZOS)
        at = round(left_baseline[0] + box[0] * self.scale), round(left_baseline[1] + box[1] * self.scale)
        picture.paste(small, at, small)


def _runs(text: str, size_px: int) -> Iterator[tuple[_Face, str]]:
    """Yield the parts of a text that one font draws, in order."""
    run, current = "", None
    for letter in text:
        face = current if current and _joins(letter) else _face_for(letter, size_px)
        if current and face is not current:
            yield current, run
            run = ""
        run, current = run + letter, face
    if current:
        yield current, run


def _joins(letter: str) -> bool:
    """Return whether a code point belongs to the letter before it: an accent, a joiner, a color of skin."""
    return unicodedata.category(letter) in ("Mn", "Me", "Cf") or "\U0001f3fb" <= letter <= "\U0001f3ff"


@cache
def _face_for(letter: str, size_px: int) -> _Face:
    own = _own_face(size_px)
    emoji = letter >= FIRST_EMOJI
    if not emoji and own.has(letter):
        return own
    system = EMOJI_FONTS if emoji else (*SYSTEM_FONTS, *EMOJI_FONTS)
    faces = (_system_face(name, size_px) for name in system)
    return next((face for face in faces if face and face.has(letter)), own)


@cache
def _own_face(size_px: int) -> _Face:
    content = files("moongate.pages").joinpath(OWN_FONT).read_bytes()
    return _Face(ImageFont.truetype(io.BytesIO(content), size_px))


@cache
def _system_face(name: str, size_px: int) -> _Face | None:
    """Return a font of the system, or None if there is none of this name."""
    for size in (size_px, *BITMAP_SIZES_PX):
        try:
            return _Face(ImageFont.truetype(name, size), size_px / size)
        except OSError as error:
            if "pixel size" not in str(error):
                return None
    return None
