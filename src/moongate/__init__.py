"""Teach a text-to-image diffusion model your own things from a few photos, and compose them in one picture.

An implementation of *Multi-Concept Customization of Text-to-Image Diffusion* (Kumari et al., CVPR 2023). Importing
the package loads no PyTorch; that happens when something of it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbone import Backbone, Fingerprint
    from .collection import Collection
    from .compression import Compressed, CompressionReport, compress
    from .concept import Concept, Dense, LowRank, SubjectRecord
    from .data import PRESETS, Preset, Regularisation, Subject
    from .embedding import Encoder
    from .merge_report import MergeReport
    from .merging import Merged, MergeOptions, merge
    from .method import METHODS, Method
    from .retrieval import Retrieved, RetrieveOptions, retrieve
    from .sampling import Sample, SampleOptions, contact_sheet, sample
    from .training import Step, TrainOptions, train

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "PRESETS",
    "Backbone",
    "Collection",
    "Compressed",
    "CompressionReport",
    "Concept",
    "Dense",
    "Encoder",
    "Fingerprint",
    "LowRank",
    "MergeOptions",
    "MergeReport",
    "Merged",
    "Method",
    "Preset",
    "Regularisation",
    "RetrieveOptions",
    "Retrieved",
    "Sample",
    "SampleOptions",
    "Step",
    "Subject",
    "SubjectRecord",
    "TrainOptions",
    "compress",
    "contact_sheet",
    "merge",
    "retrieve",
    "sample",
    "train",
]

_HOMES = {
    "backbone": ("Backbone", "Fingerprint"),
    "collection": ("Collection",),
    "compression": ("Compressed", "CompressionReport", "compress"),
    "concept": ("Concept", "Dense", "LowRank", "SubjectRecord"),
    "data": ("PRESETS", "Preset", "Regularisation", "Subject"),
    "embedding": ("Encoder",),
    "merge_report": ("MergeReport",),
    "merging": ("MergeOptions", "Merged", "merge"),
    "method": ("METHODS", "Method"),
    "retrieval": ("RetrieveOptions", "Retrieved", "retrieve"),
    "sampling": ("Sample", "SampleOptions", "contact_sheet", "sample"),
    "training": ("Step", "TrainOptions", "train"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'moongate' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
