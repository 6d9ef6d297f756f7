from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from moongate.errors import OptionError, RankLost, TrainingDiverged
from recipe.team import Team, run_in_team
from tiny_team import fit_line


def test_the_batches_of_a_step_are_shared_out() -> None:
    assert list(Team().shards(2)) == [0, 1]
    assert [list(Team(rank=rank, size=2).shards(2)) for rank in (0, 1)] == [[0], [1]]


def test_a_team_of_one_agrees_with_itself_and_keeps_its_gradients() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 2.0)
    Team().sum_gradients([weight])
    assert Team().agreed(0.25) == 0.25
    assert torch.equal(weight.grad, torch.full((3,), 2.0))


def test_more_than_two_processes_are_refused() -> None:
    with pytest.raises(OptionError, match=r"processes is 3; 1 and 2 are possible"):
        run_in_team(lambda options, team: None, SimpleNamespace(processes=3))


def test_one_process_computes_what_two_compute(tmp_path: Path) -> None:
    states = []
    for processes in (1, 2):
        run_in_team(fit_line, SimpleNamespace(out=tmp_path / str(processes), processes=processes, second=""))
        states.append(torch.load(tmp_path / str(processes) / "state.pt", weights_only=True))
    one, two = states
    assert one["position"]["pictures"] == two["position"]["pictures"] == 80
    for part in ("model", "average"):
        assert all(map(torch.equal, one[part].values(), two[part].values()))


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        ("diverges", TrainingDiverged, r"The loss of step 3 is inf. The last checkpoint remains"),
        ("ends", RankLost, r"The other process of this run has ended .* Run the same command again"),
    ],
)
def test_what_happens_in_the_second_process_alone_is_said_in_one_sentence(
    tmp_path: Path, second: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_in_team(fit_line, SimpleNamespace(out=tmp_path, processes=2, second=second))
