"""A photo and a concept for the tests of edits, and how their pictures are drawn."""

import numpy as np
import torch
from jaxtyping import UInt8

from moongate.backbone import Backbone
from moongate.concept import Concept, Dense, SubjectRecord
from moongate.sampling import SampleOptions

SAMPLING = SampleOptions(steps=2, guidance=4.0, scheduler="ddim")
SOURCE = "photo of a red bear"


def photo_of_blocks() -> UInt8[np.ndarray, "64 64 3"]:
    coarse = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def concept_of(backbone: Backbone) -> Concept:
    """A concept `<rex> dog` that changes keys and values visibly."""
    generator = torch.Generator().manual_seed(3)
    weights = backbone.weights("cross-attention-kv").items()
    return Concept(
        deltas={name: Dense(delta=torch.randn(weight.shape, generator=generator)) for name, weight in weights},
        tokens={"<rex>": backbone.token_row(20)},
        token_widths=backbone.token_widths,
        subjects=(SubjectRecord(category="dog", token="<rex>"),),
        base=backbone.name,
        fingerprint=backbone.fingerprint,
        method="custom-diffusion",
    )
