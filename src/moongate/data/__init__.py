"""What is taught and what must not be forgotten: subjects, regularization pictures, augmentation, picture files."""

from moongate.data.subjects import (
    PRESETS,
    ZOOM,
    Augmented,
    Preset,
    Regularization,
    Subject,
    augment,
    digest,
    photo_of,
    square,
)

__all__ = [
    "PRESETS",
    "ZOOM",
    "Augmented",
    "Preset",
    "Regularization",
    "Subject",
    "augment",
    "digest",
    "photo_of",
    "square",
]
