"""The classifier that judges pocket's pictures: which objects, place and style it sees.

A small network trained on pocket's corpus alone, which never sees the denoiser. `pocket.report` trains it; its weights
come with the package, so that a demo can count what it drew. It knows nothing of captions or concepts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from moongate.data.pictures import as_tensor
from moongate.errors import OptionError
from moongate.files import write_atomically
from moongate.pocket import recognizer_file

__all__ = ["WIDTHS", "Classes", "Recognizer", "recognized"]

WIDTHS = (32, 64, 128, 256)
"""Channels of the four blocks."""
SEEN_AT_ONCE = 100


class Classes(NamedTuple):
    """The categories, places and styles that a recognizer tells apart, in the order of its scores."""

    categories: tuple[str, ...]
    places: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def counts(self) -> list[int]:
        """How many there are of each."""
        return [len(names) for names in self]


class Recognizer(nn.Module):
    """Images [n, 3, height, width] in -1..1 to scores [n, categories + places + styles].

    Categories are scored everywhere and pooled by log-sum-exp: a small object counts like a large.
    """

    def __init__(self, classes: Classes, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.classes, self.widths = classes, tuple(widths)
        stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False)
        blocks = map(_HalvingBlock, (widths[0], *widths[:-1]), widths)
        self.body = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU(), *blocks)
        self.objects = nn.Conv2d(widths[-1], classes.counts[0], 1)
        self.surroundings = nn.Linear(2 * widths[-1], sum(classes.counts[1:]))

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read what `save` wrote; the one that comes with the package by default.

        Raises OptionError when there is no such file, or it holds something else.
        """
        path = path or recognizer_file()
        if not path.is_file():
            raise OptionError(
                f"There is no recognizer {path}, which tells what is in a picture. Write one with "
                f"`python -m moongate.pocket.report --classifier-steps 3000 --ship {path.parent}`, or install "
                f"Moongate again."
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            names = Classes(*(tuple(json.loads(header[group])) for group in Classes._fields))
            recognizer = cls(names, json.loads(header["widths"]))
            recognizer.load_state_dict(tensors)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise OptionError(f"{path} is not a recognizer ({error}). Give one that `--ship` wrote.") from error
        return recognizer.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write the weights in float16 and the names of the classes, whole or not at all."""
        header = {group: json.dumps(names) for group, names in self.classes._asdict().items()}
        header["widths"] = json.dumps(self.widths)
        state = {
            name: (value.half() if value.is_floating_point() else value).cpu().contiguous()  # trained channels last
            for name, value in self.state_dict().items()
        }
        write_atomically(path, save(state, metadata=header))

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n classes"]:
        seen = self.body(images)
        objects = self.objects(seen).float().flatten(2).logsumexp(2)
        surroundings = self.surroundings(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1))
        return torch.cat([objects, surroundings.float()], 1)

    @torch.no_grad()
    def scores(self, pictures: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n classes"]:
        """Return the scores of uint8 pictures."""
        return torch.cat([self(part) for part in as_tensor(pictures).split(SEEN_AT_ONCE)])

    def numbers(self, categories: Sequence[str]) -> list[int]:
        """Return the places of categories among the scores. Raises OptionError for one that it was not trained on."""
        known = self.classes.categories
        if unknown := [name for name in categories if name not in known]:
            raise OptionError(f"The recognizer does not know the category {unknown[0]!r}. Known: {', '.join(known)}.")
        return [known.index(name) for name in categories]

    def sees(
        self, pictures: UInt8[np.ndarray, "n height width 3"], categories: Sequence[str]
    ) -> Bool[Tensor, "n categories"]:
        """Tell which of k categories are among the k that score highest: all are, where a picture is `recognized`."""
        best = self.scores(pictures)[:, : self.classes.counts[0]].topk(len(categories)).indices
        return torch.stack([(best == number).any(1) for number in self.numbers(categories)], 1)


class _HalvingBlock(nn.Module):
    """A residual block that halves height and width."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        shrink, mix = nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(before, after, 1, bias=False)
        self.straight = nn.Sequential(shrink, mix)
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(self.straight(inputs) + self.residual(inputs))


def recognized(scores: Float[Tensor, "n classes"], truth: Sequence[set[int]]) -> Bool[Tensor, " n"]:
    """Tell for each row whether its k true classes are the k that score highest."""
    pairs = zip(scores, truth, strict=True)
    return torch.tensor([set(row.topk(len(true)).indices.tolist()) == true for row, true in pairs])
