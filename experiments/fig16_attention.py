"""Fig. 16: where each word looks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.pictures import Attention
from experiments.records import Record, Results
from experiments.rendering import save_sheet
from moongate.pages import contact_sheet

TITLE = "Fig. 16: where each word looks"
PROMPTS = {"jar": "photo of a {} on the beach", "winchesterArmchair": "photo of a {} in the snow"}


def records() -> Iterator[Record]:
    """Yield the records of the figure."""
    yield from (Attention(example, prompt) for example, prompt in PROMPTS.items())


def report(results: Results, out: Path) -> str:
    """Draw the picture and the map of each word in one row."""
    text = "Means over layers, heads and steps; white is each word's largest value. Custom Diffusion, seed 0.\n"
    for example, prompt in PROMPTS.items():
        record = Attention(example, prompt)
        attention, picture = results[record], results.picture(record)
        maps = [(255 * np.array(word["map"])).astype(np.uint8) for word in attention["words"]]
        large = [Image.fromarray(part).resize(picture.size, Image.Resampling.BICUBIC).convert("RGB") for part in maps]
        labels = ["picture", *(word["word"] for word in attention["words"])]
        images = [np.asarray(image) for image in (picture, *large)]
        sheet = contact_sheet(images, columns=len(images), labels=labels)
        text += f"\n{attention['prompt']}\n\n" + save_sheet(sheet, out / f"fig16_{example}.webp")
    return text
