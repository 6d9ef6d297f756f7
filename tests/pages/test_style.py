"""The colors of the pages, measured by the contrast formula of the Web Content Accessibility Guidelines 2.2."""

import re

import pytest

from moongate.pages import style

STYLE = style("colors")


def colors(mode: str) -> dict[str, str]:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)
    )
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}[mode]


def luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_gives_the_known_extremes() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_texts_have_the_contrast_of_level_aa(mode: str) -> None:
    palette = colors(mode)
    pairs = [("ink", "ground"), ("muted", "ground"), *((level, f"{level}-ground") for level in ("good", "fair", "bad"))]
    assert {
        pair: contrast(palette[pair[0]], palette[pair[1]])
        for pair in pairs
        if contrast(palette[pair[0]], palette[pair[1]]) < 4.5
    } == {}


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_lines_and_bars_have_the_contrast_of_graphics(mode: str) -> None:
    palette = colors(mode)
    for number in range(6):
        for behind in ("ground", "panel"):
            assert contrast(palette[f"color-{number}"], palette[behind]) >= 3
