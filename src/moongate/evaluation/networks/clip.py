"""Pocket CLIP: the text tower that conditions pocket, and the image tower that was trained beside it.

A stand-in for CLIP where no hub can be reached: its similarities compare one another, never those of a real CLIP. It
knows the words and the kinds of pictures of pocket's corpus and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from moongate.backbone import PROJECTION, PROJECTION_FILE
from moongate.backbone.loading import quiet
from moongate.errors import BackboneError
from moongate.pocket import weights_folder

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

__all__ = ["PocketClip"]


@dataclass(frozen=True, kw_only=True)
class PocketClip:
    """Features of captions and pictures in one space, [n, 256] and of length one: their products are cosines."""

    folder: Path = field(default_factory=weights_folder)
    device: str = "cpu"

    @torch.no_grad()
    def caption_features(self, captions: Sequence[str]) -> Float[Tensor, "n width"]:
        """Return the features of captions; what is longer than the tower's context is cut."""
        limit = self._tokenizer.model_max_length
        ids = self._tokenizer(list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        features = self._text_tower(ids.input_ids.to(self.device)).pooler_output.float()
        return F.normalize(F.linear(features, self._projection), dim=1)

    @torch.no_grad()
    def image_features(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n width"]:
        """Return the features of pictures in -1..1, scaled to the tower's 128 pixels where they are of another size."""
        side = self._image_tower.config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        return F.normalize(self._image_tower(images.to(self.device)).image_embeds.float(), dim=1)

    @cached_property
    def _tokenizer(self) -> "CLIPTokenizer":
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer")

    @cached_property
    def _text_tower(self) -> "CLIPTextModel":
        from transformers import CLIPTextModel

        with quiet():
            tower = CLIPTextModel.from_pretrained(self.folder / "text_encoder", dtype=torch.float32)
        return tower.to(self.device).eval()

    @cached_property
    def _projection(self) -> Float[Tensor, "width hidden"]:
        file = self.folder / PROJECTION_FILE
        if not file.is_file():
            raise BackboneError(f"{self.folder} has no {PROJECTION_FILE}. Give the folder that pocket ships.")
        return load_file(file)[PROJECTION].float().to(self.device)

    @cached_property
    def _image_tower(self) -> "CLIPVisionModelWithProjection":
        from transformers import CLIPVisionModelWithProjection

        folder = self.folder / "image_encoder"
        if not folder.is_dir():
            raise BackboneError(f"{self.folder} has no image_encoder/. Give the folder that pocket ships.")
        with quiet():
            tower = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)
        return tower.to(self.device).eval()
