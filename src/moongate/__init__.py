"""Teach a text-to-image diffusion model your own subjects from a few photos, and compose them in one picture.

An implementation of *Multi-Concept Customization of Text-to-Image Diffusion* (Kumari et al., CVPR 2023). Importing
the package does not load PyTorch: each name below is imported from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moongate.errors import (
    BackboneError,
    BaseMismatchError,
    CollectionError,
    ConceptFileError,
    CorpusError,
    FleetError,
    InputError,
    MissingLibrary,
    MoongateError,
    MoongateWarning,
    OptionError,
    PictureError,
    PublishError,
    RankLost,
    StudioError,
    TokenError,
    TrainingDiverged,
)

if TYPE_CHECKING:
    from moongate.backbone import Backbone, Fingerprint
    from moongate.compression import Compressed, CompressionReport, compress
    from moongate.concept import Concept, Dense, LowRank, SubjectRecord
    from moongate.data import PRESETS, Preset, Regularization, Subject
    from moongate.editing import Edit, Edited, EditOptions, edit
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
    "Backbone",
    "BackboneError",
    "BaseMismatchError",
    "Clip",
    "Collection",
    "CollectionError",
    "Compressed",
    "CompressionReport",
    "Concept",
    "ConceptFileError",
    "CorpusError",
    "Dense",
    "Edit",
    "EditOptions",
    "Edited",
    "Fingerprint",
    "FleetError",
    "InputError",
    "LowRank",
    "METHODS",
    "MergeOptions",
    "MergeReport",
    "Merged",
    "Method",
    "MissingLibrary",
    "MoongateError",
    "MoongateWarning",
    "OptionError",
    "PRESETS",
    "PictureError",
    "Preset",
    "PublishError",
    "RankLost",
    "Regularization",
    "RetrieveOptions",
    "Retrieved",
    "Sample",
    "SampleOptions",
    "Step",
    "StudioError",
    "Subject",
    "SubjectRecord",
    "TokenError",
    "TrainOptions",
    "TrainingDiverged",
    "compress",
    "contact_sheet",
    "edit",
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
    "editing": ("Edit", "EditOptions", "Edited", "edit"),
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
"""The module of each name that is imported when it is first used."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
