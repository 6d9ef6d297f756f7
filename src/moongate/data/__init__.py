"""Training data: subjects, regularization pictures, captions, augmentation and picture files."""

from moongate.data.augmentation import ZOOM, Augmented, Framing, augment, framed, framing, square
from moongate.data.captions import PRESETS, Preset, photo_of, with_article
from moongate.data.subjects import Regularization, Subject

__all__ = [
    "PRESETS",
    "ZOOM",
    "Augmented",
    "Framing",
    "Preset",
    "Regularization",
    "Subject",
    "augment",
    "framed",
    "framing",
    "photo_of",
    "square",
    "with_article",
]
