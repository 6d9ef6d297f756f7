import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moongate.errors import CorpusError, OptionError
from recipe.networks import make_denoiser, write_weights
from recipe.pretrain.denoiser import DenoiserOptions, _Losses, _make_head, _times, read_average, train_denoiser
from recipe.pretrain.prepare import Prepared
from recipe.team import Team

Run = Callable[..., dict[str, Tensor]]


@pytest.fixture
def trained(corpus_folder: Path, prepared_folder: Path, tmp_path: Path) -> Run:
    """A function that trains in a folder of a name and returns its state."""

    def train(name: str, **options: object) -> dict[str, Tensor]:
        paths = {"corpus": corpus_folder, "prepared": prepared_folder, "out": tmp_path / name}
        train_denoiser(DenoiserOptions(**paths, batch=2, **options), Team())
        return torch.load(tmp_path / name / "state.pt", weights_only=True)

    return train


def same(one: dict[str, Tensor], other: dict[str, Tensor], key: str = "model") -> bool:
    return all(map(torch.equal, one[key].values(), other[key].values()))


def test_the_state_of_another_run_is_continued(trained: Run, tmp_path: Path) -> None:
    whole = trained("whole", pictures=8)
    trained("begun", pictures=4)
    assert same(whole, trained("more", pictures=8, start_from=tmp_path / "begun" / "state.pt"))


def test_weights_that_have_seen_an_unknown_number_of_pictures_need_it(trained: Run, tmp_path: Path) -> None:
    write_weights(tmp_path / "silent.safetensors", make_denoiser().state_dict())
    with pytest.raises(OptionError, match=r"does not say how many pictures it has seen. Give --pictures-before"):
        trained("refused", pictures=1008, start_from=tmp_path / "silent.safetensors")
    more = trained("more", pictures=1008, start_from=tmp_path / "silent.safetensors", pictures_before=1004)
    assert more["position"]["pictures"] == 1008


def test_weights_start_a_run_and_count_their_pictures(trained: Run, tmp_path: Path) -> None:
    trained("first", pictures=4)
    weights = tmp_path / "first" / "weights.safetensors"
    state = trained("second", pictures=8, start_from=weights)
    assert state["position"] == {"step": 1, "pictures": 8, "seconds": state["position"]["seconds"]}
    model = make_denoiser()
    assert read_average(model, tmp_path / "second" / "state.pt") == 8
    averages = {name: value for name, value in state["average"].items() if name.startswith("unet.")}
    assert all(torch.equal(value, averages[f"unet.{name}"]) for name, value in model.state_dict().items())


def test_other_settings_and_other_files_are_refused(trained: Run, tmp_path: Path) -> None:
    trained("run", pictures=4)
    with pytest.raises(OptionError, match=r"average_decay 0\.999, now 0\.5"):
        trained("run", pictures=8, average_decay=0.5)
    with pytest.raises(OptionError, match=r"There is no file"):
        trained("new", pictures=8, start_from=tmp_path / "none.pt")
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(OptionError, match=r"is not the state of a run"):
        trained("new", pictures=8, start_from=tmp_path / "broken.pt")
    write_weights(tmp_path / "other.safetensors", nn.Linear(2, 2).state_dict())
    with pytest.raises(OptionError, match=r"weights of another network"):
        trained("new", pictures=8, start_from=tmp_path / "other.safetensors")
    with pytest.raises(OptionError, match=r"minutes has no limit"):
        DenoiserOptions(decay_minutes=5)


def test_a_missing_preparation_is_named_with_its_command(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no prepared\.json\. Run `python -m recipe\.pretrain\.prepare"):
        train_denoiser(DenoiserOptions(corpus=corpus_folder, prepared=tmp_path, out=tmp_path / "out"), Team())


def test_without_repa_the_features_are_not_needed(
    trained: Run, prepared_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(prepared_folder, bare, ignore=shutil.ignore_patterns("features_*"))
    with pytest.raises(CorpusError, match="has no features of the pictures 0 to"):
        train_denoiser(DenoiserOptions(corpus=corpus_folder, prepared=bare, out=tmp_path / "refused"), Team())
    options = {"pictures": 4, "repa_weight": 0.0}
    train_denoiser(
        DenoiserOptions(corpus=corpus_folder, prepared=bare, out=tmp_path / "without", batch=2, **options), Team()
    )
    state = torch.load(tmp_path / "without" / "state.pt", weights_only=True)
    assert same(state, trained("with", **options))


def test_times_are_stratified_and_favor_high_noise() -> None:
    times = _times(400, torch.Generator().manual_seed(0))
    assert times.min() >= 0
    assert times.max() <= 999
    uniform = times[::4]
    assert (uniform.double() / 10 - torch.arange(100)).abs().max() <= 1
    favored = times[torch.arange(400) % 4 != 0].double()
    assert favored.median().item() == pytest.approx(690, abs=5)


def test_a_batch_holds_the_given_share_of_pairs(corpus_folder: Path, prepared_folder: Path) -> None:
    model = nn.ModuleDict({"unet": make_denoiser(), "head": _make_head(32)})
    options = DenoiserOptions(corpus=corpus_folder, prepared=prepared_folder)
    losses = _Losses(model, Prepared(prepared_folder, corpus_folder), options)
    chosen = losses._choose(4000, torch.Generator().manual_seed(0))
    assert torch.isin(chosen, losses.prepared.pairs).double().mean().item() == pytest.approx(0.45, abs=0.03)
