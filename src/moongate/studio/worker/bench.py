"""What the worker process keeps from one question to the next: the model that was used last, and concepts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.interop import Imported

__all__ = ["Bench", "Setup"]

KEPT_CONCEPTS = 16
"""Concepts that stay in memory; those of SD 1.5 have up to 75 MB."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the studio was started."""

    model: str = "pocket"
    """The model where a concept names none."""
    config: str | None = None
    device: str | None = None
    cache: str | None = None
    """Folder in which the Gram matrices of captions are kept from one merge to the next."""


@dataclass(kw_only=False)
class Bench:
    """The loaded model, and the concepts that were read last."""

    setup: Setup
    _models: "dict[str, Backbone]" = field(default_factory=dict, init=False, repr=False)
    _concepts: "dict[tuple[str, int], Imported]" = field(default_factory=dict, init=False, repr=False)

    def backbone(self, model: str | None = None) -> "Backbone":
        """Return a model; the one that was used last stays loaded. It is not fetched from the hub.

        Raises:
            BackboneError: It cannot be loaded.
        """
        from moongate.backbone import Backbone

        name = model or self.setup.model
        if name not in self._models:
            self._models.clear()  # before the next is loaded: two may not fit into the memory
            config = Path(self.setup.config) if self.setup.config and name == self.setup.model else None
            self._models[name] = Backbone.load(name, config=config, device=self.setup.device, downloads=False)
        return self._models[name]

    def imported(self, file: str) -> "Imported":
        """Return what a concept file of any format holds, with the notes of its reading.

        Raises:
            ConceptFileError: It is no readable concept.
        """
        from moongate.interop import recognize

        path = Path(file)
        key = file, path.stat().st_mtime_ns
        if key not in self._concepts:
            recognized = recognize(path)
            base = self.backbone(recognized.base or None) if recognized.format.name != "moongate" else None
            while len(self._concepts) >= KEPT_CONCEPTS:
                self._concepts.pop(next(iter(self._concepts)))
            self._concepts[key] = recognized.concept(base=base)
        return self._concepts[key]
