import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from moongate.pocket import pretrain
from moongate.pocket.pretrain import Corpus, PretrainOptions, Stage, fit, load_tokenizer, train_tokenizer

STAGE = Stage(steps=12, batch=4, rate=1e-2)


def fitted(folder: Path, *, stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    calls = []

    def loss_of(generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if stop_at and len(calls) > stop_at:
            raise KeyboardInterrupt
        return (model(torch.randn(4, 3, generator=generator)) - 1).square().mean()

    folder.mkdir(exist_ok=True)
    return fit("line", model, loss_of, STAGE, PretrainOptions(out=folder, checkpoint_minutes=0))


def test_a_stopped_stage_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "parts", stop_at=7)
    resumed = fitted(tmp_path / "parts")
    assert torch.equal(whole.weight, resumed.weight)
    assert not (tmp_path / "parts" / "line.pt").exists()


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    whole = fitted(tmp_path)
    assert torch.equal(fitted(tmp_path, stop_at=1).weight, whole.weight)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    folder = tmp_path / "corpus"
    folder.mkdir()
    captions = [f"photo of a {thing} on the beach" for thing in ("dog", "cat", "teddy bear")] * 30 + ["a sly fox"] * 6
    scenes = [{"caption": caption, "categories": [], "split": "train"} for caption in captions]
    (folder / "scenes.jsonl").write_text("\n".join(map(json.dumps, scenes)))
    np.save(folder / "pictures.npy", np.zeros((len(captions), 8, 8, 3), dtype=np.uint8))
    return Corpus(folder)


def test_pieces_are_words_and_everything_can_be_spelt(corpus: Corpus, tmp_path: Path) -> None:
    """The first tokenizer cut "dog" into letters, because it had learnt its pieces with a space before them."""
    options = PretrainOptions(out=tmp_path)
    train_tokenizer(options, corpus)
    tokenizer = load_tokenizer(options)
    assert tokenizer.tokenize("Photo of a teddy bear") == ["photo</w>", "of</w>", "a</w>", "teddy</w>", "bear</w>"]
    assert tokenizer.eos_token not in tokenizer.tokenize("zebra, 42% of é!")
    assert tokenizer("dog").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer("dog").input_ids[-1] == tokenizer.eos_token_id
    rare = json.loads((tmp_path / "tokenizer" / "rare_tokens.json").read_text())["ids"]
    assert set(tokenizer.convert_ids_to_tokens(rare)) == {"sly</w>", "fox</w>"}


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    factors = [pretrain._rate_factor(step, 3000) for step in range(3000)]
    assert factors[0] < 0.01
    assert factors[500] == factors[1900] == 1
    assert factors[-1] < 0.001
