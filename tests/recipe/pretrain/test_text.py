import json
from pathlib import Path

import pytest
import torch

from moongate.evaluation.networks.clip import Clip
from recipe.corpus import Corpus
from recipe.pretrain.text import TextOptions, contrastive_loss, learn_tokenizer, train_text


def test_rare_tokens_are_those_of_five_to_ten_occurrences(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = Corpus(corpus_folder)
    corpus.captions[: corpus.training] = ["photo of a dog"] * (corpus.training - 6) + ["a sly fox"] * 6
    tokenizer = learn_tokenizer(corpus, tmp_path)
    rare = json.loads((tmp_path / "rare_tokens.json").read_text())["ids"]
    assert set(tokenizer.convert_ids_to_tokens(rare)) == {"sly</w>", "fox</w>"}


def test_a_tokenizer_that_is_there_is_kept(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = Corpus(corpus_folder)
    first = learn_tokenizer(corpus, tmp_path)
    corpus.captions = ["something else"] * len(corpus.captions)
    assert learn_tokenizer(corpus, tmp_path).get_vocab() == first.get_vocab()


def test_both_towers_are_trained_from_nothing(corpus_folder: Path, tmp_path: Path) -> None:
    train_text(TextOptions(corpus=corpus_folder, out=tmp_path, steps=1, batch=2))
    clip = Clip.load(tmp_path)
    assert clip.captions(["a ball"]).shape == (1, 256)
    assert clip.pictures(torch.zeros(1, 3, 128, 128)).shape == (1, 256)


def test_equal_captions_share_their_pictures() -> None:
    ids = torch.tensor([[1], [1], [2]])
    logits = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert contrastive_loss(logits, ids) == pytest.approx(2 / 3 * torch.log(torch.tensor(2.0)).item(), abs=1e-3)
