"""A tiny corpus, for which nothing is downloaded or rendered, and small networks, for tests of the recipe."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recipe import networks
from recipe.corpus.catalog import Object
from recipe.corpus.scenes import make_scene
from recipe.pretrain.perception import DEPTHS

TRAINING, HELD_OUT = 24, 8
COLORS = {"ball": (220, 20, 20, 255), "chair": (30, 90, 220, 255)}
AUTOENCODER = networks.AUTOENCODER | {
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
}
DENOISER = networks.DENOISER | {"block_out_channels": (32, 32), "attention_head_dim": (1, 1)}
"""The recipe's networks with fewer channels."""


def make_corpus(folder: Path) -> Path:
    """Write a finished corpus of red balls and blue chairs."""
    folder.mkdir()
    objects = {name: _cube(name, color) for name, color in COLORS.items()}
    rows, pictures = [], []
    for index in range(TRAINING + HELD_OUT):
        shown = [objects["ball"], objects["chair"]] if index % 3 == 0 else [objects[("ball", "chair")[index % 2]]]
        place = ("on the beach", "in the snow", "on a blue background")[index % 3]
        scene = make_scene(shown, rng=np.random.default_rng(index), panoramas={}, place=place)
        split = "train" if index < TRAINING else "held out"
        row = {"caption": scene.caption, "categories": scene.categories, "place": scene.place, "style": scene.style}
        rows.append(row | {"split": split})
        pictures.append(scene.picture)
    np.save(folder / "pictures.npy", np.stack(pictures))
    (folder / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _cube(name: str, color: tuple[int, ...]) -> Object:
    return Object(key=name, category=name, name=name, kind="photo", views=[np.full((8, 8, 4), color, dtype=np.uint8)])


def fixed_features(device: str) -> Callable[[Tensor], Tensor]:
    """Return a stand-in for EfficientNet-Lite0: a fixed random kernel with the same shape of output."""
    torch.manual_seed(7)
    return nn.Conv2d(3, 112, 16, stride=16).requires_grad_(False)


class FixedPerception(nn.Module):
    """Fixed random kernels in place of EfficientNet-Lite1, which gives features of the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(nn.Conv2d(3, channels, 8, stride=8) for channels in DEPTHS).requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [kernel(images.float()) for kernel in self.kernels]
