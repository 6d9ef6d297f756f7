"""Time the closed-form merge on Stable Diffusion 1.5's shapes, and for comparison Eq. 5 as written, in float32.

    python benchmarks/merge.py [--json]

32 matrices take text features of width 768, and 77 features of an empty prompt do not move. Every concept prescribes
four features in two contexts, or three in one where there are too many concepts. The features are random, with the
spectrum of text features (a few strong directions, a long tail), so that no model is needed. Seconds are CPU
seconds, which other programs disturb less. `ratio` is the time of the formula with explicit inverses in float32,
without the fixed features, over ours in the same run.
"""

import resource
import time
from json import dumps

import torch
import tyro
from torch import Tensor

from moongate.merging.closed_form import factorize

WIDTH = 768
OUTPUTS = (320,) * 10 + (640,) * 10 + (1280,) * 12
"""Rows of the keys and values of Stable Diffusion 1.5's sixteen cross-attention layers."""
CONCEPTS = (2, 10, 50, 200)
FEATURES_PER_CONCEPT = 8
FEATURES_OF_MANY = 3
"""The token, one word and the end of one caption."""
EMPTY_PROMPT = 77
REGULARIZATION_ROWS = 20_000
TAIL = 4.0
"""Powers of ten between the strongest and the weakest direction of the features."""


Problem = tuple[Tensor, Tensor, list[Tensor], Tensor]


def problem(concepts: int) -> Problem:
    """Return rows, the Gram matrix, the prescribed values of each matrix, and the empty prompt's features, float64."""
    generator = torch.Generator().manual_seed(concepts)
    strength = torch.logspace(0, -TAIL / 2, WIDTH, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))[0]

    def features(count: int) -> Tensor:
        return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * strength @ basis

    each = FEATURES_PER_CONCEPT if concepts * FEATURES_PER_CONCEPT + EMPTY_PROMPT < WIDTH else FEATURES_OF_MANY
    captions, rows = features(REGULARIZATION_ROWS), features(concepts * each)
    values = [torch.randn(len(rows), outputs, generator=generator, dtype=torch.float64) for outputs in OUTPUTS]
    return rows, captions.T @ captions, values, features(EMPTY_PROMPT)


def ours(rows: Tensor, gram: Tensor, values: list[Tensor], fixed: Tensor) -> float:
    """Solve all matrices and return the largest relative residual."""
    factorized = factorize(rows, gram, fixed=fixed)
    return max(factorized.residual(factorized.solve(each), each) for each in values)


def plain(rows: Tensor, gram: Tensor, values: list[Tensor], _fixed: Tensor) -> float:
    """Solve Eq. 5 with explicit inverses in float32 and return the largest relative residual."""
    rows, gram = rows.float(), gram.float()
    d = rows @ torch.linalg.inv(gram).T
    inner = torch.linalg.inv(d @ rows.T)
    worst = 0.0
    for wanted in values:
        change = (inner @ wanted.float()).T @ d
        residual = change.double() @ rows.double().T - wanted.T
        worst = max(worst, float(residual.norm() / wanted.norm()))
    return worst


def main(*, json: bool = False) -> None:
    """Measure and print.

    Args:
        json: Print one line of JSON.
    """
    figures: dict[str, float] = {}
    ours(*problem(1))  # the first call loads the linear algebra library
    for concepts in CONCEPTS:
        given = problem(concepts)
        for name, solve in (("", ours), ("plain_", plain)):
            began = time.process_time()
            residual = solve(*given)
            figures[f"{name}n{concepts}_seconds"] = round(time.process_time() - began, 4)
            figures[f"{name}n{concepts}_residual"] = residual
        figures[f"n{concepts}_ratio"] = figures[f"plain_n{concepts}_seconds"] / figures[f"n{concepts}_seconds"]
    figures["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if json:
        print(dumps(figures))
        return
    print(f"{'concepts':>8}  {'seconds':>8}  {'residual':>9}  {'Eq. 5 in float32':>16}  {'residual':>9}  {'ratio':>5}")
    for n in CONCEPTS:
        print(
            f"{n:8d}  {figures[f'n{n}_seconds']:8.3f}  {figures[f'n{n}_residual']:9.1e}  "
            f"{figures[f'plain_n{n}_seconds']:16.3f}  {figures[f'plain_n{n}_residual']:9.1e}  "
            f"{figures[f'n{n}_ratio']:5.2f}"
        )
    print(f"peak memory {figures['peak_mb']} MB")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
