"""Captions (and, with a CLIP model, pictures) as unit vectors, so that captions near a prompt can be found.

The feature of a caption is that of its end-of-text token, the only one that has read all of it: projected into the
space that captions share with pictures, where the paper's threshold of 0.85 is meant (Sec. 3.2), or, where a backbone
brings no such projection, as its text encoder leaves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from moongate.backbone import Backbone
from moongate.errors import BackboneError, OptionError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["CLIP_THRESHOLD", "Encoder"]

CLIP_THRESHOLD = 0.85
"""The paper's similarity above which a caption is near the prompt."""
ENCODE_AT_ONCE = 256
PROBE = "photo of a red chair and a dog on the beach"
"""What an encoder makes of this caption tells it from others."""
SAME_ENCODER_ABOVE = 0.999
"""Product of probes above which two encoders are one: half precision changes it by less."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A text encoder by name, with the threshold that suits its similarities; `clip` also embeds pictures."""

    name: str
    threshold: float
    tokenizer: "CLIPTokenizer"
    text_encoder: Any
    projection: Float[Tensor, "width hidden"] | None = None
    """Takes a caption's feature into the space shared with pictures."""
    clip: Any = None

    @classmethod
    def of_backbone(cls, backbone: Backbone) -> Self:
        """Take the backbone's own text encoder."""
        return cls(
            name=backbone.name,
            threshold=backbone.retrieval_threshold,
            tokenizer=backbone.tokenizer,
            text_encoder=backbone.text_encoder,
            projection=backbone.caption_projection,
        )

    @classmethod
    def load(cls, model: str, *, device: str = "cpu") -> Self:
        """Load a CLIP model: a folder in transformers' layout, or a model id of the hub. Raises BackboneError."""
        from transformers import CLIPModel, CLIPTokenizer

        try:
            clip = CLIPModel.from_pretrained(model).eval().requires_grad_(False)
            tokenizer = CLIPTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise BackboneError(
                f"The CLIP model {model!r} cannot be loaded ({type(error).__name__}). Give a folder in transformers' "
                "layout, a model id while the hub can be reached, or no encoder for the backbone's own."
            ) from error
        clip = clip.to(device)
        return cls(
            name=model,
            threshold=CLIP_THRESHOLD,
            tokenizer=tokenizer,
            text_encoder=clip.text_model,
            projection=clip.text_projection.weight,
            clip=clip,
        )

    @property
    def probe(self) -> list[float]:
        """What this encoder makes of a fixed caption; equal up to rounding for the same encoder only."""
        return self.captions([PROBE])[0].tolist()

    def agrees(self, probe: Sequence[float]) -> bool:
        """Tell whether `probe` was made by this encoder, in whatever precision."""
        mine = self.probe
        return len(mine) == len(probe) and float(np.dot(mine, probe)) > SAME_ENCODER_ABOVE

    def check_pictures(self) -> None:
        """Raise OptionError unless pictures can be embedded."""
        if self.clip is None:
            raise OptionError(
                f"The text encoder of {self.name!r} has no image tower to embed pictures with. Name a CLIP model "
                "(--encoder)."
            )

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Float[np.ndarray, "n width"]:
        """Return captions as float32 unit vectors; what is longer than the encoder's context is cut.

        Captions of like length are encoded together: what pads a caption comes after its end and is not read.
        """
        limit = self.tokenizer.model_max_length
        ids = [self.tokenizer(text, truncation=True, max_length=limit).input_ids for text in captions]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors: dict[int, np.ndarray] = {}
        for begin in range(0, len(order), ENCODE_AT_ONCE):
            part = order[begin : begin + ENCODE_AT_ONCE]
            ends = torch.tensor([len(ids[index]) - 1 for index in part])
            padded = torch.full((len(part), int(ends.max()) + 1), self.tokenizer.eos_token_id)
            for row, index in enumerate(part):
                padded[row, : len(ids[index])] = torch.tensor(ids[index])
            features = self.text_encoder(padded.to(self.text_encoder.device)).last_hidden_state
            features = features[torch.arange(len(part)), ends.to(features.device)]
            if self.projection is not None:
                features = F.linear(features, self.projection.to(features))
            vectors |= dict(zip(part, _unit(features), strict=True))
        return np.stack([vectors[index] for index in range(len(ids))])

    @torch.no_grad()
    def pictures(self, pictures: Sequence[np.ndarray]) -> Float[np.ndarray, "n width"]:
        """Return uint8 pictures [h, w, 3] as float32 unit vectors. Raises OptionError where there is no image tower."""
        self.check_pictures()
        from transformers import CLIPImageProcessorPil

        processor = CLIPImageProcessorPil(
            size={"shortest_edge": self.clip.config.vision_config.image_size},
            crop_size=self.clip.config.vision_config.image_size,
        )
        values = processor(list(pictures), return_tensors="pt").pixel_values.to(self.clip.device)
        return _unit(self.clip.visual_projection(self.clip.vision_model(values).pooler_output))


def _unit(features: Tensor) -> Float[np.ndarray, "n width"]:
    return F.normalize(features.float(), dim=1).cpu().numpy()
