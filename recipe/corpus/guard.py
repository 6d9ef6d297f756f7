"""Look for seen objects that are nearly equal to a held-out one: `python -m recipe.corpus.guard --corpus corpus`.

Every held-out object is compared with every seen object of its own kind, by the features of EfficientNet-Lite0 on a
gray background. The nearest seen object of each is written to `docs/results/near_duplicates.json`; the program ends
with status 1 if one is as near as two views of a single object, because then the split must exclude it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from moongate.evaluation.networks.lite0 import lite0_features
from moongate.files import write_atomically
from recipe.command import command
from recipe.corpus.catalog import Object, is_held_out, read_objects

__all__ = ["GuardOptions", "Nearest", "main", "nearest_seen", "similarity_of_views"]

BACKGROUND = 128
"""Gray level behind the cut-outs."""


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """What to compare, and where to write."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    out: Path = Path("docs/results/near_duplicates.json")
    """File to write."""
    views: int = 4
    """Number of views of each 3-D model."""
    quantile: float = 0.95
    """A pair of objects is a near-duplicate when its cosine exceeds this quantile of the cosines between two views of
    one held-out object. Drawings have one view; the same limit holds for them."""
    device: str = "cpu"
    """Device to compute on."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The seen object that is nearest to a held-out one."""

    held_out: str
    nearest: str
    cosine: float


def nearest_seen(
    held_out: dict[str, Float[Tensor, "_views features"]], seen: dict[str, Float[Tensor, "_views features"]]
) -> list[Nearest]:
    """Return for each held-out object the seen one with the most similar view (cosine), nearest pairs first."""
    nearest = []
    for key, views in held_out.items():
        cosines = {other: float((views @ theirs.T).max()) for other, theirs in seen.items()}
        other = max(cosines, key=cosines.__getitem__)
        nearest.append(Nearest(held_out=key, nearest=other, cosine=round(cosines[other], 4)))
    return sorted(nearest, key=lambda pair: -pair.cosine)


def similarity_of_views(objects: dict[str, Float[Tensor, "_views features"]], quantile: float) -> float:
    """Return a quantile of the cosines between two views of one object, over all objects of several views."""
    cosines = [views @ views.T for views in objects.values() if len(views) > 1]
    pairs = torch.cat([part[torch.ones_like(part).triu(diagonal=1).bool()] for part in cosines])
    return float(pairs.quantile(quantile))


def features_of(
    items: Sequence[Object], network: Callable[[Tensor], Tensor], *, views: int, device: str
) -> dict[str, Float[Tensor, "_views features"]]:
    """Return the normalized features of evenly chosen views of each object."""
    features = {}
    for item in track(items, "Features"):
        chosen = np.linspace(0, len(item.views) - 1, min(views, len(item.views))).round().astype(int)
        cutouts = torch.from_numpy(np.stack([item.views[i] for i in chosen])).float().permute(0, 3, 1, 2)
        opacity = cutouts[:, 3:] / 255
        pictures = (cutouts[:, :3] * opacity + BACKGROUND * (1 - opacity)) / 127.5 - 1
        with torch.no_grad():
            features[item.key] = F.normalize(network(pictures.to(device)), dim=1).cpu()
    return features


def main(options: GuardOptions) -> None:
    """Compare, write the report, print it, and exit with status 1 when there is a near-duplicate."""
    objects = read_objects(options.corpus / "cutouts.npz")
    network = lite0_features(options.device)
    features = features_of(objects, network, views=options.views, device=options.device)
    photographed = {item.key for item in objects if item.kind == "photo"}
    hidden = {item.key for item in objects if is_held_out(item)}
    limit = similarity_of_views({key: features[key] for key in hidden & photographed}, options.quantile)
    pairs = []
    for kind in (photographed, features.keys() - photographed):
        held_out = {key: features[key] for key in sorted(hidden & kind)}
        pairs += nearest_seen(held_out, {key: features[key] for key in sorted(kind - hidden)})
    near_duplicates = sum(pair.cosine > limit for pair in pairs)
    report = {
        "features": "EfficientNet-Lite0",
        "views": options.views,
        "limit": round(limit, 4),
        "near_duplicates": near_duplicates,
        "pairs": [vars(pair) for pair in pairs],
    }
    write_atomically(options.out, (json.dumps(report, indent=1) + "\n").encode())
    table = Table("held out", "nearest seen object", "cosine", title=f"limit {limit:.3f}")
    for pair in pairs:
        table.add_row(pair.held_out, pair.nearest, f"{pair.cosine:.3f}", style="red" if pair.cosine > limit else None)
    Console().print(table)
    sys.exit(near_duplicates > 0)


if __name__ == "__main__":
    command(GuardOptions, main, description=__doc__)
