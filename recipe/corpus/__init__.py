"""Pocket's corpus: captioned pictures made from packages of public registries, and how a finished corpus is read.

`python -m recipe.corpus.build` makes it; `Corpus` reads it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moongate.data.pictures import as_tensor
from moongate.errors import CorpusError

__all__ = ["PICTURES_FILE", "SCENES_FILE", "Corpus"]

PICTURES_FILE, SCENES_FILE = "pictures.npy", "scenes.jsonl"


class Corpus:
    """The pictures and captions of a finished corpus folder, training pictures first, then the held-out ones.

    Attributes:
        pictures: uint8 [n, height, width, 3], mapped into memory: 98,000 pictures take 5 GB.
        scenes: for each picture its caption, categories, place, style and split.
        captions: the caption of each picture.
        training: how many pictures belong to the training set.
    """

    def __init__(self, folder: Path) -> None:
        """Open a corpus.

        Raises:
            CorpusError: the folder holds no corpus, or an unfinished one.
        """
        remedy = f"Run `python -m recipe.corpus.build --out {folder}`; it goes on where it stopped."
        for name in (SCENES_FILE, PICTURES_FILE):
            if not (folder / name).is_file():
                raise CorpusError(f"{folder} is not a finished corpus: it has no {name}. {remedy}")
        self.folder = folder
        self.pictures = np.load(folder / PICTURES_FILE, mmap_mode="r")
        with (folder / SCENES_FILE).open() as lines:
            self.scenes: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if len(self.scenes) != len(self.pictures):
            raise CorpusError(
                f"{folder} has {len(self.pictures)} pictures but {len(self.scenes)} captions. Delete {PICTURES_FILE} "
                f"and {SCENES_FILE}. {remedy}"
            )
        self.captions: list[str] = [scene["caption"] for scene in self.scenes]
        self.training = sum(scene["split"] == "train" for scene in self.scenes)
        if not 0 < self.training < len(self.scenes):
            raise CorpusError(
                f"{folder} has {self.training} training pictures among {len(self.scenes)}; both training and held-out "
                "pictures are needed. Build it again."
            )

    def images(self, indices: Int[Tensor, " n"]) -> Float[Tensor, "n 3 height width"]:
        """Return pictures as floats in -1..1, in the order of the indices."""
        return as_tensor(np.stack([self.pictures[index] for index in indices.tolist()]))

    def held_out(self, count: int) -> Int[Tensor, " count"]:
        """Return the indices of the first `count` held-out pictures, or of all when there are fewer."""
        return torch.arange(self.training, min(self.training + count, len(self.scenes)))
