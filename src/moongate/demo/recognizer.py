"""The classifier that counts what is in pocket's pictures: which objects, which place and which style.

A small convolutional network that is trained on pocket's corpus alone (`recipe/recognizer.py`) and never sees a picture
that pocket drew. Its weights come with the package, so that a demo can count its own pictures. It knows nothing of
captions or concepts.
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
from moongate.errors import OptionError, first_line
from moongate.files import write_atomically
from moongate.pocket import recognizer_file

__all__ = ["WIDTHS", "Classes", "Recognizer", "log_shares", "recognized"]

WIDTHS = (48, 96, 192)
"""Channels at 1/4, 1/8 and 1/16 of the picture's side."""
BATCH = 100
LEAST_SHARE = 1e-6
"""Lower bound of a share before its logarithm is taken."""


class Classes(NamedTuple):
    """The categories, places and styles that a recognizer distinguishes, in the order of its scores."""

    categories: tuple[str, ...]
    places: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def counts(self) -> list[int]:
        """The number of categories, of places and of styles."""
        return [len(names) for names in self]


class Recognizer(nn.Module):
    """Scores of categories, places and styles for images of any size.

    Every cell of 16 x 16 pixels is classified by itself: it shows one of the categories, or none of them. The score of
    a category is the logarithm of its share among all cells that show something. A cell cannot count for two
    categories, so the second-best guess about one object does not hide the other object. Place and style are read from
    the means and maxima of all cells, and from the mean of those that show an object.

    Args:
        classes: Names of what is distinguished.
        widths: Channels of the three levels.
    """

    def __init__(self, classes: Classes, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.classes, self.widths = classes, tuple(widths)
        first, second, last = self.widths
        self.body = nn.Sequential(
            nn.Conv2d(3, first, 7, stride=4, padding=3, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            _Block(first, first),
            _Block(first, second, stride=2),
            _Block(second, second),
            _Block(second, last, stride=2),
            _Block(last, last),
        )
        self.objects = nn.Conv2d(last, classes.counts[0] + 1, 1)  # the last one: none of the categories
        self.surroundings = nn.Linear(3 * last, sum(classes.counts[1:]))

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: The file; the recognizer of the package when None.

        Raises:
            OptionError: There is no such file, or it is not a recognizer of this architecture.
        """
        path = path or recognizer_file()
        if not path.is_file():
            raise OptionError(
                f"There is no recognizer {path}, which counts what is in a picture. Train one with "
                f"`python -m recipe.recognizer --out {path.parent}`, or install Moongate again."
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            names = Classes(*(tuple(json.loads(header[group])) for group in Classes._fields))
            recognizer = cls(names, json.loads(header["widths"]))
            recognizer.load_state_dict(tensors)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise OptionError(
                f"{path} is not a recognizer ({first_line(error)}). Give a file that `recipe.recognizer` wrote."
            ) from error
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
        """Return the scores of images in -1..1."""
        cells, surroundings = self.cells_and_surroundings(images)
        return torch.cat([log_shares(cells), surroundings], 1)

    def cells_and_surroundings(
        self, images: Float[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n categories rows columns"], Float[Tensor, "n rest"]]:
        """Return each cell's probabilities of the categories, and the scores of places and styles."""
        features = self.body(images)
        cells = self.objects(features).float().softmax(1)[:, :-1]
        weights = cells.sum(1, keepdim=True).detach()
        weights = weights / weights.sum((2, 3), keepdim=True).clamp(min=LEAST_SHARE)
        of_objects = (features * weights.to(features)).sum((2, 3))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3)), of_objects], 1)
        return cells, self.surroundings(pooled).float()

    @torch.no_grad()
    def scores(self, pictures: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n classes"]:
        """Return the scores of uint8 pictures."""
        return torch.cat([self(part) for part in torch.split(as_tensor(pictures), BATCH)])

    def numbers(self, categories: Sequence[str]) -> list[int]:
        """Return the indices of categories among the scores. Raises OptionError for a category it does not know."""
        known = self.classes.categories
        if unknown := [name for name in categories if name not in known]:
            raise OptionError(f"The recognizer does not know the category {unknown[0]!r}. Known: {', '.join(known)}.")
        return [known.index(name) for name in categories]

    def sees(
        self, pictures: UInt8[np.ndarray, "n height width 3"], categories: Sequence[str]
    ) -> Bool[Tensor, "n categories"]:
        """Return which of k categories are among the k that score highest.

        All of them are exactly where the picture is `recognized`.
        """
        best = self.scores(pictures)[:, : self.classes.counts[0]].topk(len(categories)).indices
        return torch.stack([(best == number).any(1) for number in self.numbers(categories)], 1)


def log_shares(cells: Float[Tensor, "n categories rows columns"]) -> Float[Tensor, "n categories"]:
    """Return the logarithm of each category's share of the probability in all cells."""
    sums = cells.sum((2, 3))
    return (sums / sums.sum(1, keepdim=True)).clamp(min=LEAST_SHARE).log()


def recognized(scores: Float[Tensor, "n classes"], truth: Sequence[set[int]]) -> Bool[Tensor, " n"]:
    """Return for each row whether its k true classes are the k that score highest."""
    pairs = zip(scores, truth, strict=True)
    return torch.tensor([set(row.topk(len(true)).indices.tolist()) == true for row, true in pairs])


class _Block(nn.Module):
    """Two convolutions with a straight path around them; a stride of 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.straight: nn.Module = nn.Identity()
        if stride > 1:
            shrink = nn.AvgPool2d(stride, ceil_mode=True)
            self.straight = nn.Sequential(shrink, nn.Conv2d(inputs, outputs, 1, bias=False))
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(self.straight(inputs) + self.residual(inputs))
