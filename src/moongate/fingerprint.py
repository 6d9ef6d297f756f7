"""The fingerprint of a base: it identifies the weights, in whatever precision they are loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from moongate.files import digest

__all__ = ["Fingerprint", "layout_of"]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Identifies a base by the keys and values of its cross-attention.

    It compares norms, not bytes: a hash of the bytes would differ between copies of one model in float32 and half
    precision. Rounding to bfloat16 makes the norms equal for a base in float32 and in bfloat16, and equal to about 1e-5
    in float16. Fine-tuning moves some norm by more than the tolerance.
    """

    layout: str
    """Digest of the names and shapes of the weights; "" if unknown."""
    norms: tuple[float, ...]
    """Frobenius norms of the weights after rounding to bfloat16, in the order of names; empty if unknown."""

    TOLERANCE = 1e-4
    """Largest relative difference of a norm within one base."""

    @classmethod
    def unknown(cls) -> Self:
        """Return the fingerprint for a concept file that does not identify its base. It matches every base."""
        return cls(layout="", norms=())

    def matches(self, other: Self) -> bool:
        """Return whether both come from the same weights, as far as both are known."""
        if not (self.norms and other.norms):
            return True
        if self.layout != other.layout or len(self.norms) != len(other.norms):
            return False
        pairs = zip(self.norms, other.norms, strict=True)
        return all(abs(a - b) <= self.TOLERANCE * max(a, b) for a, b in pairs)

    @property
    def short(self) -> str:
        """A name of twelve characters for people; it may differ between precisions."""
        if not self.norms:
            return "unknown"
        return digest(self.layout, ",".join(f"{norm:.3g}" for norm in self.norms))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"layout": self.layout, "norms": list(self.norms)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        return cls(layout=str(value["layout"]), norms=tuple(float(norm) for norm in value["norms"]))


def layout_of(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return the digest of the names and shapes of weights, in the order of the mapping."""
    return digest(json.dumps({name: list(shape) for name, shape in shapes.items()}), length=64)
