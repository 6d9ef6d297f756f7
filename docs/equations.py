"""Turn equations into MathML when the site is built, so that pages need no script and nothing from outside."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace each equation that the Markdown extension marked."""

    def rendered(equation: re.Match[str]) -> str:
        display = "block" if equation[1] == "div" else "inline"
        return convert(html.unescape(equation[2]), display=display)

    return EQUATION.sub(rendered, content)
