import pytest
import torch

from moongate.evaluation.networks.preprocessing import central_square, normalized


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (40, 40), (20, 20), (21, 20)])
def test_the_central_square_is_taken_at_the_size_asked_for(height: int, width: int) -> None:
    """The first channel rises from left to right, the second from top to bottom; the center of both is 0."""
    across = torch.linspace(-1, 1, width).expand(height, width)
    down = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    square = central_square(torch.stack([across, down, across])[None], 20)
    assert square.shape == (1, 3, 20, 20)
    assert square.mean((0, 2, 3)).abs().max() < 0.06
    least = min(height, width)
    spans = (square[0, 0, 0, -1] - square[0, 0, 0, 0], square[0, 1, -1, 0] - square[0, 1, 0, 0])
    for span, side in zip(spans, (width, height), strict=True):
        assert float(span) == pytest.approx(2 * least / side, rel=0.1), "the whole of the shorter side"
    assert square.min() >= -1
    assert square.max() <= 1


def test_a_square_of_the_right_size_stays_as_it_is() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(central_square(images, 16), images)


def test_colors_have_the_mean_and_the_deviation_of_training() -> None:
    images = torch.stack([torch.full((4, 4), value) for value in (-1.0, 0.0, 1.0)])[None]
    colors = normalized(images, mean=(0.0, 0.25, 0.5), std=(1.0, 0.5, 0.25))[0, :, 0, 0]
    assert colors.tolist() == [0.0, 0.5, 2.0]
