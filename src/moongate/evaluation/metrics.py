"""Measures of pictures by their features: alignment with text and with target pictures, KID, FID (paper, Sec. 4).

Pure functions of features; they do not know which network made them. Everything is computed in float64.

Intervals resample prompts, not pictures: pictures of one prompt are similar, so that resampling pictures would give an
interval that is too narrow. FID has no interval, because its matrix root would be computed a thousand times.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from moongate.errors import OptionError

__all__ = [
    "Interval",
    "check_level",
    "fid",
    "image_alignment",
    "kid",
    "kid_interval",
    "mean_interval",
    "text_alignment",
]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the bounds between which it would fall with other prompts of the same kind."""

    value: float
    low: float
    high: float


def check_level(level: float) -> None:
    """Raise OptionError for a confidence level that is not between 0 and 1."""
    if not 0 < level < 1:
        raise OptionError(f"The level is {level}; it must be between 0 and 1, such as 0.95.")


def text_alignment(images: Float[Tensor, "n width"], captions: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
    """Return the cosine similarity, -1..1, of each picture and its own caption."""
    return F.cosine_similarity(images.double(), captions.double(), dim=1)


def image_alignment(images: Float[Tensor, "n width"], targets: Float[Tensor, "m width"]) -> Float[Tensor, " n"]:
    """Return the mean cosine similarity, -1..1, of each picture with all target pictures.

    The mean of these values is the mean over all pairs.
    """
    return F.normalize(images.double(), dim=1) @ F.normalize(targets.double(), dim=1).mean(0)


def mean_interval(
    values: Float[Tensor, " n"],
    prompts: Int[Tensor, " n"],
    *,
    generator: torch.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Return the mean of the values of pictures, and its interval over resampled prompts (bootstrap).

    Args:
        values: One value for each picture.
        prompts: Index of the prompt of each picture.
        generator: Draws the resamples.
        resamples: Number of resamples.
        level: Confidence level, between 0 and 1.

    Raises:
        OptionError: The level is not between 0 and 1.
    """
    weights = _resampled(prompts, resamples, generator)
    means = weights @ values.double() / weights.sum(1)
    return _interval(values.double().mean(), means, level)


def kid(a: Float[Tensor, "n width"], b: Float[Tensor, "m width"]) -> float:
    """Return the Kernel Inception Distance, the unbiased squared maximum mean discrepancy.

    The kernel k(x, y) = (x.y / width + 1)^3 is averaged over the distinct pairs within `a` and within `b`, minus twice
    its average between them (Binkowski et al. 2018, Demystifying MMD GANs, Eq. 4). A negative value is noise around 0.

    Raises:
        OptionError: A set has fewer than two pictures.
    """
    return float(_kid(_Kernels.of(a, b), torch.ones(1, len(a), dtype=torch.float64))[0])


def kid_interval(
    drawn: Float[Tensor, "n width"],
    real: Float[Tensor, "m width"],
    prompts: Int[Tensor, " n"],
    *,
    generator: torch.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Return the KID and its interval over resampled prompts of the drawn pictures (bootstrap).

    A picture that is in a resample twice makes no pair with itself; otherwise every resample would look too distant.

    Args:
        drawn: Features of drawn pictures; their prompts are resampled.
        real: Features of real pictures, which stay the same.
        prompts: Index of the prompt of each drawn picture.
        generator: Draws the resamples.
        resamples: Number of resamples.
        level: Confidence level, between 0 and 1.

    Raises:
        OptionError: A set has fewer than two pictures, or the level is not between 0 and 1.
    """
    kernels = _Kernels.of(drawn, real)
    weights = _resampled(prompts, resamples, generator)
    usable = weights[(weights > 0).sum(1) > 1]
    value = _kid(kernels, torch.ones(1, len(drawn), dtype=torch.float64))[0]
    return _interval(value, _kid(kernels, usable), level)


def fid(a: Float[Tensor, "n width"], b: Float[Tensor, "m width"]) -> float:
    """Return the Fréchet Inception Distance, |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) with covariances A, B.

    With A = X^T X and B = Y^T Y the trace of the root is the sum of the singular values of X Y^T. So neither a matrix
    root nor full rank is needed, and there may be fewer pictures than features. The FID of few pictures is biased
    upwards; compare equal numbers of pictures.

    Raises:
        OptionError: A set has fewer than two pictures.
    """
    (mean_a, x), (mean_b, y) = map(_moments, (a, b))
    root = torch.linalg.svdvals(x @ y.T).sum()
    return float((mean_a - mean_b).square().sum() + x.square().sum() + y.square().sum() - 2 * root)


@dataclass(frozen=True, kw_only=True)
class _Kernels:
    """Kernel values within the first set (0 on the diagonal) and between the sets, and the mean within the second."""

    within: Float[Tensor, "n n"]
    between: Float[Tensor, "n m"]
    within_other: Float[Tensor, ""]

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> "_Kernels":
        _check_set(a)
        _check_set(b)
        a, b = a.double(), b.double()

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.T / x.shape[1] + 1) ** 3

        first, second = kernel(a, a), kernel(b, b)
        other = (second.sum() - second.trace()) / (len(b) * (len(b) - 1))
        return cls(within=first - first.diagonal().diag(), between=kernel(a, b), within_other=other)


def _kid(kernels: _Kernels, weights: Float[Tensor, "resamples n"]) -> Float[Tensor, " resamples"]:
    """Return the KID for each row of weights of the pictures in the first set."""
    total = weights.sum(1)
    within = ((weights @ kernels.within) * weights).sum(1) / (total.square() - weights.square().sum(1))
    return within + kernels.within_other - 2 * (weights @ kernels.between.mean(1)) / total


def _moments(features: Float[Tensor, "n width"]) -> tuple[Float[Tensor, " width"], Float[Tensor, "rows width"]]:
    """Return the mean and a matrix X with X^T X = covariance, which has at most as many rows as there are features."""
    _check_set(features)
    features = features.double()
    mean = features.mean(0)
    return mean, torch.linalg.qr((features - mean) / (len(features) - 1) ** 0.5, mode="r").R


def _resampled(prompts: Int[Tensor, " n"], resamples: int, generator: torch.Generator) -> Float[Tensor, "resamples n"]:
    """Return how often each picture is in each resample of the prompts."""
    distinct, index = torch.unique(prompts, return_inverse=True)
    drawn = torch.randint(0, len(distinct), (resamples, len(distinct)), generator=generator)
    counts = torch.zeros(resamples, len(distinct), dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))[:, index]


def _interval(value: Float[Tensor, ""], resampled: Float[Tensor, " resamples"], level: float) -> Interval:
    check_level(level)
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled, bounds).tolist()
    return Interval(value=float(value), low=low, high=high)


def _check_set(features: Float[Tensor, "n width"]) -> None:
    if len(features) < 2:
        raise OptionError(f"A distance between sets needs at least two pictures of each, not {len(features)}.")
