import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from torch._subclasses.fake_tensor import FakeTensorMode

from moongate.backbone.guidance import guidance_embedding, picture_sizes


@pytest.mark.parametrize("width", [8, 9, 256])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_the_embedding_is_that_of_diffusers(guidance: float, width: int) -> None:
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([guidance - 1]), embedding_dim=width
    )
    assert torch.equal(guidance_embedding(guidance, width), expected)


def test_sdxl_is_told_the_size_twice_and_that_nothing_was_cropped() -> None:
    assert picture_sizes(512, 768, torch.device("cpu")).tolist() == [[512, 768, 0, 0, 512, 768]]


def test_sizes_made_on_tensors_without_numbers_are_not_used_again() -> None:
    with FakeTensorMode():
        picture_sizes(640, 640, torch.device("cpu"))
    assert picture_sizes(640, 640, torch.device("cpu")).tolist() == [[640, 640, 0, 0, 640, 640]]
