"""What the files of `foreign_files` must become when Moongate reads them."""

import torch
from torch import Tensor

import foreign_files as foreign
from moongate.backbone import Backbone
from moongate.concept import Concept, LowRank

WIDTH = 16
"""Of a token's row in the tiny models."""


def denoiser(backbone: Backbone) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in backbone.unet.named_parameters()}


def assert_changes(concept: Concept, before: dict[str, Tensor], *, exactly: bool = True) -> None:
    """The concept's changes must be those that `foreign_files` wrote."""
    expected = foreign.changes(before)
    assert {name.removeprefix("unet.").removesuffix(".weight") for name in concept.deltas} == set(expected)
    for module, (up, down) in expected.items():
        change = concept.deltas[f"unet.{module}.weight"]
        if exactly:
            assert isinstance(change, LowRank)
            assert torch.equal(change.up, up)
            assert torch.equal(change.down, down)
        else:
            whole = before[f"{module}.weight"]
            bound = torch.finfo(torch.float32).eps * (whole.abs() + (up @ down).abs())
            assert ((change.full() - up @ down).abs() <= bound).all()
