import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from moongate.backbone.guidance import guidance_embedding


@pytest.mark.parametrize("width", [8, 9, 256])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_the_embedding_is_that_of_diffusers(guidance: float, width: int) -> None:
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([guidance - 1]), embedding_dim=width
    )
    assert torch.equal(guidance_embedding(guidance, width), expected)
