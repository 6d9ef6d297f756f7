"""One HTML file with all trials of a study, to send to raters: it needs no server, no network and no program.

The answers stay in the reader's browser until the reader saves them as a file, which `read_sent` reads. The page names
no method: a picture is called by `picture_key`.
"""

import base64
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from moongate.errors import OptionError
from moongate.files import write_atomically
from moongate.pages import style
from moongate.preference.answers import FORMAT, picture_key
from moongate.preference.study import PICTURES, QUESTIONS, Study

__all__ = ["PAGE", "write_page"]

PAGE = "judge.html"
STORED_PX = 768
"""Largest side of a picture in the page."""


def write_page(study: Study, folder: Path) -> Path:
    """Write the page of a study into its folder, and return its path.

    Raises:
        OptionError: A picture of the study is missing or damaged, or the page cannot be written.
    """
    package = files("moongate.preference")
    page = package.joinpath("judge.html").read_text(encoding="utf-8")
    parts = {
        "STYLE": style("colors", "style"),
        "SCRIPT": package.joinpath("judge.js").read_text(encoding="utf-8"),
        "DATA": json.dumps(_data(study, folder)).replace("<", "\\u003c"),  # no text ends the element that holds it
    }
    for name, part in parts.items():
        page = page.replace(f"@{name}@", part)
    write_atomically(folder / PAGE, page.encode())
    return folder / PAGE


def _data(study: Study, folder: Path) -> dict[str, Any]:
    """Return what the page shows, without the names of methods and with the pictures of a prompt in no order."""
    keys = [{method: picture_key(study, n, method) for method in item.pictures} for n, item in enumerate(study.items)]
    names = dict.fromkeys(file for item in study.items for file in item.pictures.values())
    names |= dict.fromkeys(photo for target in study.targets for photo in target.photos)
    return {
        "format": FORMAT,
        "study": study.id,
        "seed": study.seed,
        "questions": {question: QUESTIONS[question] for question in study.questions},
        "items": [
            {
                "prompt": item.prompt,
                "photos": [photo for index in item.targets for photo in study.targets[index].photos],
            }
            for item in study.items
        ],
        "pictures": {
            keys[n][method]: file for n, item in enumerate(study.items) for method, file in item.pictures.items()
        },
        "trials": [
            [question, n, *sorted((keys[n][first], keys[n][second]))]
            for question in study.questions
            for n, first, second in study.pairs(question)
        ],
        "files": {name: _data_url(folder / PICTURES / name) for name in names},
    }


def _data_url(path: Path) -> str:
    buffer = io.BytesIO()
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.thumbnail((STORED_PX, STORED_PX), Image.Resampling.LANCZOS)
            image.convert("RGB").save(buffer, format="WebP", quality=92)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OptionError(f"{path} is missing or damaged ({error}). Make the study again.") from error
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
