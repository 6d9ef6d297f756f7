import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from moongate.errors import OptionError
from moongate.evaluation.metrics import fid, image_alignment, kid, kid_interval, mean_interval, text_alignment


def random(count: int, width: int, *, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().numpy(), b.double().numpy()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# --- alignment ----------------------------------------------------------------------------------


def test_text_alignment_pairs_each_picture_with_its_own_caption() -> None:
    images, captions = random(5, 8, seed=0), 3 * random(5, 8, seed=1)
    expected = [cosine(image, caption) for image, caption in zip(images, captions, strict=True)]
    assert text_alignment(images, captions).tolist() == pytest.approx(expected)


def test_image_alignment_is_the_mean_over_all_pairs() -> None:
    images, targets = random(5, 8, seed=0), 2 * random(3, 8, seed=1)
    pairs = [[cosine(image, target) for target in targets] for image in images]
    values = image_alignment(images, targets)
    assert values.tolist() == pytest.approx([sum(row) / 3 for row in pairs])
    assert float(values.mean()) == pytest.approx(np.mean(pairs))


# --- distances ----------------------------------------------------------------------------------


def test_kid_equals_the_sums_over_pairs_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 3, generator=generator), 1 + torch.randn(5, 3, generator=generator)

    def mean_kernel(xs: Tensor, ys: Tensor, *, distinct: bool) -> float:
        values = []
        for i, x in enumerate(xs.tolist()):
            for j, y in enumerate(ys.tolist()):
                if not (distinct and i == j):
                    values.append((sum(p * q for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3)
        return sum(values) / len(values)

    within = mean_kernel(a, a, distinct=True) + mean_kernel(b, b, distinct=True)
    assert kid(a, b) == pytest.approx(within - 2 * mean_kernel(a, b, distinct=False), rel=1e-9)


def test_kid_is_near_zero_within_one_distribution_and_large_between_two() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, 64, generator=generator)
    assert abs(kid(a, b)) < 0.015  # the standard deviation is 0.003
    assert kid(a, b + 0.5) > 0.5


def reference_fid(a: Tensor, b: Tensor) -> float:
    """As the definition says, with a general matrix square root."""
    a, b = a.double().numpy(), b.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(first + second - 2 * np.real(root)))


def test_fid_equals_the_definition() -> None:
    a = random(60, 6, seed=0)
    b = random(80, 6, seed=1, shift=0.3) @ random(6, 6, seed=2)
    assert fid(a, b) == pytest.approx(reference_fid(a, b), rel=1e-9)
    assert fid(b, a) == pytest.approx(fid(a, b), rel=1e-12)


def test_fid_of_fewer_pictures_than_features_is_that_of_the_space_they_span() -> None:
    """Ten pictures in twenty of 200 dimensions, turned at random: a root of the full covariance is singular there."""
    a, b = random(10, 20, seed=0), random(14, 20, seed=1, shift=0.5)
    turn = torch.linalg.qr(random(200, 20, seed=2).double()).Q
    covariances = [np.cov(part.double().numpy(), rowvar=False) for part in (a, b)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.where(values > 1e-10, values, 0)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariances[1] @ root)
    inner = np.where(inner > 1e-10, inner, 0)
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    expected = shift + np.trace(covariances[0] + covariances[1]) - 2 * np.sqrt(inner).sum()
    assert fid(a.double() @ turn.T, b.double() @ turn.T) == pytest.approx(float(expected), rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero_and_of_a_shifted_one_the_square_of_the_shift() -> None:
    a = random(30, 50, seed=0)
    assert fid(a, a) == pytest.approx(0, abs=1e-9)
    assert fid(a.double(), a.double() + 2) == pytest.approx(4 * 50, rel=1e-9)


def test_one_picture_is_no_set() -> None:
    for distance in (kid, fid):
        with pytest.raises(OptionError, match="at least two pictures of each, not 1"):
            distance(random(1, 4, seed=0), random(5, 4, seed=1))


# --- intervals ----------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_that_of_the_means_of_prompts() -> None:
    """With many prompts the bootstrap gives the normal interval of the prompts' means, not that of the pictures."""
    prompts = torch.arange(100).repeat_interleave(5)
    of_prompt = random(100, 1, seed=0)[:, 0].repeat_interleave(5)
    values = of_prompt + 0.01 * random(500, 1, seed=1)[:, 0]
    found = mean_interval(values, prompts, generator=generator(), resamples=4000)
    means = values.view(100, 5).mean(1).double()
    half = 1.96 * float(means.std(unbiased=False)) / 10
    assert found.value == pytest.approx(float(values.mean()), abs=1e-6)
    assert found.low == pytest.approx(found.value - half, abs=0.05 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.05 * half)


def test_prompts_with_more_pictures_weigh_more_as_in_the_mean() -> None:
    values, prompts = torch.tensor([0.0, 1, 1, 1]), torch.tensor([7, 3, 3, 3])
    found = mean_interval(values, prompts, generator=generator(), resamples=50)
    assert (found.value, found.low, found.high) == (0.75, 0, 1)


def test_the_interval_of_kid_holds_the_value_and_repeats() -> None:
    drawn, real = random(40, 6, seed=0, shift=0.4), random(50, 6, seed=1)
    prompts = torch.arange(20).repeat_interleave(2)
    first, second = (kid_interval(drawn, real, prompts, generator=generator()) for _ in range(2))
    assert first == second
    assert first.value == pytest.approx(kid(drawn, real), rel=1e-12)
    assert first.low < first.value < first.high


def test_a_picture_drawn_twice_makes_no_pair_with_itself() -> None:
    """The mean over resamples stays near the value, where counting such pairs would add about k(x, x) / n."""
    drawn, real = random(30, 6, seed=0), random(400, 6, seed=1)
    found = kid_interval(drawn, real, torch.arange(30), generator=generator(), level=0.02)
    itself = float(((drawn.double().square().sum(1) / 6 + 1) ** 3).mean()) / 30
    assert abs((found.low + found.high) / 2 - found.value) < 0.2 * itself


def test_a_level_outside_0_to_1_is_refused() -> None:
    with pytest.raises(OptionError, match="level is 95; it must be between 0 and 1"):
        mean_interval(torch.ones(3), torch.arange(3), generator=generator(), level=95)
