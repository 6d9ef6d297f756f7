"""CLIP: captions and pictures as unit vectors in one space, so that their dot products are cosine similarities.

The feature of a caption is that of its end token, which alone has read the whole caption (the mean over words is mostly
"photo of a"). It is projected into the space shared with pictures, in which the paper's threshold of 0.85 is meant
(Sec. 3.1). A backbone without such a projection gives the feature as its text encoder leaves it.

Pocket's CLIP is one instance: pocket's text encoder with the image tower that was trained together with it. It knows
the words and the kinds of pictures of pocket's corpus, and its similarities compare with each other only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from moongate.backbone import POCKET, PROJECTION_FILE, SETTINGS_FILE, Backbone, Settings
from moongate.backbone.loading import LOADING_ERRORS
from moongate.backbone.text import read_projection
from moongate.data.pictures import as_tensor
from moongate.errors import BackboneError, OptionError, first_line
from moongate.evaluation.networks.preprocessing import central_square, normalized
from moongate.evaluation.networks.pretrained import fetches, pretrained
from moongate.pocket import weights_folder

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["Clip", "ImageTower"]

IMAGE_ENCODER = "image_encoder"
"""Folder of the image tower in a model folder in diffusers' layout."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the colors, in 0..1, of the pictures that CLIP was trained on."""
CAPTIONS_AT_ONCE = 256
PROBE = "photo of a red chair and a dog on the beach"
"""A caption whose vector identifies a text encoder."""
SAME_ENCODER_ABOVE = 0.999
"""Cosine of two probe vectors above which the encoders are the same one: half precision changes it by less."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTower:
    """The image tower of a CLIP model and the pictures it expects."""

    model: Any
    """The vision transformer: normalized pictures to `pooler_output`."""
    projection: Any
    """The linear layer into the space shared with captions."""
    side_px: int
    mode: str = "bicubic"
    """Interpolation when pictures are resized."""
    is_normalized: bool = True
    """Whether it expects CLIP's mean and deviation of colors, instead of -1..1."""

    def __call__(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n features"]:
        """Return the features of pictures in -1..1 of one size; what lies outside the central square is not seen."""
        images = central_square(images.to(self.projection.weight.device), self.side_px, mode=self.mode)
        if self.is_normalized:
            images = normalized(images, mean=CLIP_MEAN, std=CLIP_STD)
        features: Tensor = self.projection(self.model(images).pooler_output)
        return features


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A text encoder, where there is one with its image tower, and the threshold that suits its similarities."""

    name: str
    threshold: float
    """Cosine similarity of two captions from which on they are considered near."""
    tokenizer: "CLIPTokenizer"
    text_encoder: Any
    text_projection: Float[Tensor, "width hidden"] | None = None
    """Takes the feature of a caption into the space shared with pictures."""
    image_tower: ImageTower | None = None
    is_backbone: bool = False
    """Whether this is the text encoder of a backbone, rather than a CLIP model of its own."""

    @classmethod
    def of_backbone(cls, backbone: Backbone) -> Self:
        """Take the text encoder of a backbone, which has no image tower."""
        return cls(
            name=backbone.name,
            threshold=backbone.settings.retrieval_threshold,
            tokenizer=backbone.tokenizer,
            text_encoder=backbone.text_encoder,
            text_projection=backbone.caption_projection,
            is_backbone=True,
        )

    @classmethod
    def load(cls, source: str | Path = POCKET, *, device: str = "cpu", downloads: bool = True) -> Self:
        """Load a CLIP model with both towers.

        Args:
            source: `"pocket"`, a folder in transformers' layout, a model id of the hub, or a model folder in diffusers'
                layout that has an `image_encoder` and a caption projection, as pocket's has.
            device: Where the towers compute.
            downloads: Whether a model that is not on this machine is fetched from the hub. Give False for a name that
                comes from a file.

        Raises:
            BackboneError: The model cannot be found or read, or lacks a part.
        """
        folder = weights_folder() if str(source) == POCKET else Path(source)
        if (folder / "text_encoder").is_dir():
            return cls._of_folder(str(source), folder, device)
        from transformers import CLIPModel

        model = pretrained(CLIPModel, source, device=device, downloads=downloads)
        side_px = model.config.vision_config.image_size
        return cls(
            name=str(source),
            threshold=Settings().retrieval_threshold,
            tokenizer=_tokenizer(source, downloads=fetches(source, downloads=downloads)),
            text_encoder=model.text_model,
            text_projection=model.text_projection.weight,
            image_tower=ImageTower(model=model.vision_model, projection=model.visual_projection, side_px=side_px),
        )

    @classmethod
    def _of_folder(cls, name: str, folder: Path, device: str) -> Self:
        """Load the text encoder, the caption projection and the image tower of a folder in diffusers' layout."""
        from transformers import CLIPTextModel, CLIPVisionModelWithProjection

        projection = read_projection(folder)
        if projection is None or not (folder / IMAGE_ENCODER).exists():
            part = PROJECTION_FILE if projection is None else IMAGE_ENCODER
            raise BackboneError(f"{folder} has no {part}, which its CLIP needs. Give a folder with both.")
        model = pretrained(CLIPVisionModelWithProjection, folder / IMAGE_ENCODER, device=device)
        return cls(
            name=name,
            threshold=Settings.read(folder / SETTINGS_FILE).retrieval_threshold,
            tokenizer=_tokenizer(folder / "tokenizer"),
            text_encoder=pretrained(CLIPTextModel, folder / "text_encoder", device=device),
            text_projection=projection.to(device),
            image_tower=ImageTower(
                model=model.vision_model,
                projection=model.visual_projection,
                side_px=model.config.image_size,
                mode="bilinear",
                is_normalized=False,
            ),
        )

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Float[Tensor, "n features"]:
        """Return captions as unit vectors, float32 on the CPU.

        Captions of similar length are encoded together. Padding stands after the end token and is not read, so that a
        vector does not depend on the other captions. A caption longer than the context is cut.
        """
        limit = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        ids = [self.tokenizer(text, truncation=True, max_length=limit).input_ids for text in captions]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors: dict[int, Tensor] = {}
        for begin in range(0, len(order), CAPTIONS_AT_ONCE):
            part = order[begin : begin + CAPTIONS_AT_ONCE]
            ends = torch.tensor([len(ids[index]) - 1 for index in part])
            rows = [torch.tensor(ids[index]) for index in part]
            padded = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eos_token_id)
            features = self.text_encoder(padded.to(self.text_encoder.device)).last_hidden_state
            features = features[torch.arange(len(part)), ends.to(features.device)]
            if self.text_projection is not None:
                features = F.linear(features, self.text_projection.to(features))
            vectors |= dict(zip(part, _unit(features), strict=True))
        return torch.stack([vectors[index] for index in range(len(ids))])

    @torch.no_grad()
    def pictures(
        self, pictures: Float[Tensor, "n 3 height width"] | Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float[Tensor, "n features"]:
        """Return pictures as unit vectors, float32 on the CPU. Only the central square of a picture is seen.

        Args:
            pictures: Pictures of one size in -1..1, or uint8 pictures of any sizes.

        Raises:
            OptionError: There is no image tower.
        """
        tower = self.check_pictures()
        if isinstance(pictures, Tensor):
            return _unit(tower(pictures))
        squares = [central_square(as_tensor(picture)[None], tower.side_px, mode=tower.mode) for picture in pictures]
        return _unit(tower(torch.cat(squares)))

    def check_pictures(self) -> ImageTower:
        """Return the image tower. Raises OptionError when there is none."""
        if self.image_tower is None:
            raise OptionError(
                f"The text encoder of {self.name!r} has no image tower, so that pictures cannot be embedded. Choose a "
                "CLIP model (--encoder)."
            )
        return self.image_tower

    @property
    def probe(self) -> list[float]:
        """The vector of a fixed caption, which identifies the text encoder.

        A collection stores it: a name would stay the same when the weights change.
        """
        vector: list[float] = self.captions([PROBE])[0].tolist()
        return vector

    def agrees(self, probe: Sequence[float]) -> bool:
        """Return whether this text encoder made the probe vector, in whatever precision."""
        own = self.probe
        return len(own) == len(probe) and float(np.dot(own, probe)) > SAME_ENCODER_ABOVE


def _tokenizer(source: str | Path, *, downloads: bool = True) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=not downloads)
    except LOADING_ERRORS as error:
        raise BackboneError(f"{source} has no tokenizer that can be read: {first_line(error)}") from error


def _unit(features: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
    return F.normalize(features.float(), dim=1).cpu()
