"""What tells one base from another, whatever the precision it is loaded in."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Fingerprint"]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What tells one base from another, whatever the precision it is loaded in.

    `layout` is a hash of the names and shapes of all cross-attention keys and values; `norms` are their Frobenius
    norms after rounding to bfloat16, in name order. The rounding makes them equal for a base loaded in float32 or
    bfloat16, and equal to about 1e-5 for float16; fine-tuning moves some norm by more than the tolerance.
    """

    layout: str
    norms: tuple[float, ...]

    TOLERANCE = 1e-4

    @classmethod
    def unknown(cls) -> Self:
        """Return the fingerprint of a concept whose file does not say which base it belongs to."""
        return cls(layout="", norms=())

    def matches(self, other: Self) -> bool:
        """Tell whether both come from the same weights, as far as both are known."""
        if not (self.norms and other.norms):
            return True
        if self.layout != other.layout or len(self.norms) != len(other.norms):
            return False
        pairs = zip(self.norms, other.norms, strict=True)
        return all(abs(a - b) <= self.TOLERANCE * max(a, b) for a, b in pairs)

    @property
    def short(self) -> str:
        """Return a name of twelve characters for people to read (it may differ between precisions)."""
        if not self.norms:
            return "unknown"
        text = self.layout + ",".join(f"{norm:.3g}" for norm in self.norms)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"layout": self.layout, "norms": list(self.norms)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned."""
        return cls(layout=str(value["layout"]), norms=tuple(float(norm) for norm in value["norms"]))
