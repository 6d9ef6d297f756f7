"""Training that a second process can import."""

import os
from typing import Any

import torch
from torch import nn

from recipe.fitting import Constant, Stage, fit, hidden_weights
from recipe.team import Team


def fit_line(options: Any, team: Team) -> None:
    """Train a small network on two batches a step, and keep its state in the folder `options.out`.

    From step 3 on, the second process alone has a loss of infinity (`options.second` is "diverges"), or it ends without
    a word ("ends").
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 1))

    def losses(generator: torch.Generator, step: int) -> dict[str, torch.Tensor]:
        points = torch.randn(4, 3, generator=generator)
        loss = (model(points)[:, 0] - points.sum(1)).square().mean()
        if team.rank == 1 and step >= 3 and options.second == "ends":
            os._exit(1)
        return {"square": loss * torch.inf if team.rank == 1 and step >= 3 and options.second == "diverges" else loss}

    stage = Stage(batch=4, shards=2, lr=1e-2)
    fit(model, losses, Constant(pictures=80), stage, folder=options.out, muon=hidden_weights(model), team=team)
