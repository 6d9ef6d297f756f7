"""Compare the memory of an edit with that of drawing, with pocket at a size where attention maps are large.

    python benchmarks/editing.py [--json]

Each figure is the growth of the peak memory of a separate process while it draws. `edit_mb` should not grow with the
steps (`edit_mb_more_steps`), and its distance from `draw_mb` should be about `kept_mb`, the queries and keys of one
step. `maps_mb` is what the attention maps of one step would take instead, and an implementation that keeps those of all
steps would take that many times as much. On two cores at 256 px: draw_mb 102, edit_mb 127, edit_mb_more_steps 141,
kept_mb 6, maps_mb 18.
"""

import resource
from concurrent.futures import ProcessPoolExecutor
from json import dumps
from multiprocessing import get_context

import torch
import tyro

from moongate.backbone import Backbone
from moongate.backbone.attention import computed, self_attentions
from moongate.editing import Edit, EditOptions, edit
from moongate.sampling import SampleOptions, sample

SIDE_PX = 256
STEPS, MORE_STEPS = 1, 3
SOURCE, TARGET = "photo of a car on the beach", "photo of a car in the snow"


def drawing(steps: int) -> float:
    """Return how many megabytes the peak grows while one picture is drawn."""
    backbone, options = Backbone.load("pocket", device="cpu"), _options(steps)
    before = _peak_mb()
    list(sample(backbone, [SOURCE], seeds=[0], options=options))
    return _peak_mb() - before


def editing(steps: int) -> float:
    """Return how many megabytes the peak grows while one picture is edited with full control."""
    backbone, options = Backbone.load("pocket", device="cpu"), _options(steps)
    before = _peak_mb()
    control = EditOptions(cross_share=1, self_share=1)
    list(edit(backbone, [Edit(source=SOURCE, target=TARGET)], options=control, sampling=options))
    return _peak_mb() - before


def sizes() -> dict[str, float]:
    """Return the megabytes of one picture's queries and keys in all layers, and of its attention maps."""
    backbone, counted = Backbone.load("pocket", device="cpu"), {"kept_mb": 0.0, "maps_mb": 0.0}

    def attend(layer: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        counted["kept_mb"] += (query[0].nbytes + key[0].nbytes) / 1e6
        counted["maps_mb"] += query.shape[1] * query.shape[2] * key.shape[2] * query.element_size() / 1e6
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    layers = {**self_attentions(backbone), **backbone.cross_attentions()}
    with computed(layers, attend):
        list(sample(backbone, [SOURCE], seeds=[0], options=_options(1, guidance=1.0)))
    return counted


def main(*, json: bool = False) -> None:
    """Measure and print.

    Args:
        json: Print one line of JSON.
    """
    figures = {}
    for name, measured, steps in (
        ("draw_mb", drawing, STEPS),
        ("edit_mb", editing, STEPS),
        ("edit_mb_more_steps", editing, MORE_STEPS),
    ):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            figures[name] = round(pool.submit(measured, steps).result())
    figures |= {name: round(value) for name, value in sizes().items()}
    if json:
        print(dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


def _options(steps: int, *, guidance: float | None = None) -> SampleOptions:
    return SampleOptions(steps=steps, scheduler="ddim", width_px=SIDE_PX, height_px=SIDE_PX, guidance=guidance)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
