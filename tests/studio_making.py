"""Make concept files and pictures for the studio's tests, in milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from moongate.backbone import Fingerprint
from moongate.concept import Concept, Dense, SubjectRecord
from moongate.interop.pictures import picture_texts
from moongate.pages import png_bytes
from moongate.sampling import Sample, SampleOptions


def make_concept(file: Path, *, token: str = "<bear>", category: str = "teddy bear", value: float = 1.0) -> Concept:
    """Write a small concept of no particular model."""
    concept = Concept(
        deltas={"unet.a.to_k.weight": Dense(delta=torch.full((4, 4), value))},
        tokens={token: torch.full((4,), value)},
        token_widths=(4,),
        subjects=(SubjectRecord(category=category, token=token),),
        base="tiny",
        fingerprint=Fingerprint.unknown(),
        method="custom-diffusion",
        record={"steps": 250},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    concept.save(file, overwrite=True)
    return concept


def make_drawing(
    file: Path, prompt: str, *, seed: int = 0, concept: Concept | None = None, side_px: int = 32, **facts: Any
) -> Path:
    """Write a picture as `moongate generate` does."""
    image = np.random.default_rng(seed).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
    used = [{"file": "bear.safetensors", "hash": concept.hash, "strength": 1.0}] if concept else []
    options = SampleOptions(steps=2)
    known = {"model": "tiny", "concepts": used, "steps": 2, "guidance": 6.0, "scheduler": "ddpm", **facts}
    sample = Sample(image=image, prompt=prompt, seed=seed)
    texts = picture_texts(sample, model="tiny", concepts=[], options=options, facts=known)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png_bytes(image, texts=texts))
    return file
