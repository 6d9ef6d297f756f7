"""Make studies and their answers for tests."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from moongate.pages import png_bytes
from moongate.preference import Answer, Choice, Item, Question, Study, Target, Trial

TIME = "2026-01-31T12:00:00.000+00:00"


def make_picture(path: Path, *, seed: int, texts: Mapping[str, str] | None = None, side_px: int = 24) -> Path:
    """Write a picture of noise."""
    image = np.random.default_rng(seed).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(image, texts=texts or {}))
    return path


def make_pictures(folder: Path, prompts: Iterable[str], *, seed: int, seeds: Iterable[int] = (0,)) -> Path:
    """Write a picture of each prompt and seed, with the texts of `moongate generate`."""
    for number, prompt in enumerate(prompts):
        for each in seeds:
            texts = {"moongate": json.dumps({"prompt": prompt, "seed": each})}
            make_picture(folder / f"{number}-{each}.png", seed=seed + 100 * number + each, texts=texts)
    return folder


def bare_study(methods: Iterable[str] = ("ours", "theirs"), *, prompts: int = 4, targets: bool = True) -> Study:
    """A study whose pictures are not there."""
    methods = tuple(methods)
    items = tuple(
        Item(
            prompt=f"prompt {number}",
            targets=(0,) if targets else (),
            pictures={method: f"{number:08x}{index:08x}.png" for index, method in enumerate(methods)},
        )
        for number in range(prompts)
    )
    return Study(methods=methods, targets=(Target(words="bear", photos=()),), items=items)


def said(
    rater: str,
    item: int,
    preferred: str | None,
    *,
    over: str = "theirs",
    question: Question = "text",
    other: str = "ours",
    time: str = TIME,
) -> Answer:
    """An answer that prefers one method to another; None skips the pair (`other`, `over`)."""
    trial = Trial(question=question, item=item, left=preferred or other, right=over)
    choice: Choice = "left" if preferred else "skip"
    return Answer(rater=rater, trial=trial, choice=choice, time=time)
