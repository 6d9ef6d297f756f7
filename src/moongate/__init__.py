"""Teach a text-to-image diffusion model your own things from a few photos, and compose them in one picture.

An implementation of *Multi-Concept Customization of Text-to-Image Diffusion* (Kumari et al., CVPR 2023). Importing
the package loads no PyTorch; that happens when something of it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moongate.backbone import Backbone, Fingerprint
    from moongate.compression import Compressed, CompressionReport, compress
    from moongate.concept import Concept, Dense, LowRank, SubjectRecord
    from moongate.data import PRESETS, Preset, Regularization, Subject
    from moongate.evaluation.networks.clip import Clip
    from moongate.merging import Merged, MergeOptions, merge
    from moongate.merging.report import MergeReport
    from moongate.pages import contact_sheet
    from moongate.regularization.collection import Collection
    from moongate.regularization.retrieval import Retrieved, RetrieveOptions, retrieve
    from moongate.sampling import Sample, SampleOptions, sample
    from moongate.training import Step, TrainOptions, train
    from moongate.training.method import METHODS, Method

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "PRESETS",
    "Backbone",
    "Clip",
    "Collection",
    "Compressed",
    "CompressionReport",
    "Concept",
    "Dense",
    "Fingerprint",
    "LowRank",
    "MergeOptions",
    "MergeReport",
    "Merged",
    "Method",
    "Preset",
    "Regularization",
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
    "compression": ("Compressed", "CompressionReport", "compress"),
    "concept": ("Concept", "Dense", "LowRank", "SubjectRecord"),
    "data": ("PRESETS", "Preset", "Regularization", "Subject"),
    "evaluation.networks.clip": ("Clip",),
    "merging": ("MergeOptions", "Merged", "merge"),
    "merging.report": ("MergeReport",),
    "pages": ("contact_sheet",),
    "regularization.collection": ("Collection",),
    "regularization.retrieval": ("RetrieveOptions", "Retrieved", "retrieve"),
    "sampling": ("Sample", "SampleOptions", "sample"),
    "training": ("Step", "TrainOptions", "train"),
    "training.method": ("METHODS", "Method"),
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
