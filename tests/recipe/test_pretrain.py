import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from recipe import pretrain
from recipe.corpus import Corpus
from recipe.fitting import Stage
from recipe.pretrain import PretrainOptions, load_tokenizer, store_latents, train_decoder, train_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    folder = tmp_path / "corpus"
    folder.mkdir()
    captions = [f"photo of a {thing} on the beach" for thing in ("dog", "cat", "teddy bear")] * 30 + ["a sly fox"] * 6
    scenes = [{"caption": caption, "categories": [], "split": "train"} for caption in captions]
    scenes[-1]["split"] = "held out"
    (folder / "scenes.jsonl").write_text("\n".join(map(json.dumps, scenes)))
    np.save(folder / "pictures.npy", np.zeros((len(captions), 8, 8, 3), dtype=np.uint8))
    return Corpus(folder)


def test_pieces_are_words_and_everything_can_be_spelt(corpus: Corpus, tmp_path: Path) -> None:
    """The first tokenizer cut "dog" into letters, because it had learned its pieces with a space before them."""
    options = PretrainOptions(out=tmp_path)
    train_tokenizer(options, corpus)
    tokenizer = load_tokenizer(options)
    assert tokenizer.tokenize("Photo of a teddy bear") == ["photo</w>", "of</w>", "a</w>", "teddy</w>", "bear</w>"]
    assert tokenizer.eos_token not in tokenizer.tokenize("zebra, 42% of é!")
    assert tokenizer("dog").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer("dog").input_ids[-1] == tokenizer.eos_token_id
    rare = json.loads((tmp_path / "tokenizer" / "rare_tokens.json").read_text())["ids"]
    assert set(tokenizer.convert_ids_to_tokens(rare)) == {"sly</w>", "fox</w>"}


def test_earlier_pieces_bring_their_list_of_rare_tokens(corpus: Corpus, tmp_path: Path) -> None:
    """Rare is what the text tower seldom saw, and it saw the earlier captions."""
    earlier, later = tmp_path / "earlier", tmp_path / "later"
    train_tokenizer(PretrainOptions(out=earlier), corpus)
    (earlier / "moongate.json").write_text(json.dumps({"rare_tokens": [300, 7]}))
    options = PretrainOptions(out=later, start_from=earlier)
    train_tokenizer(options, corpus)
    assert json.loads((later / "tokenizer" / "rare_tokens.json").read_text())["ids"] == [300, 7]
    assert load_tokenizer(options).get_vocab() == load_tokenizer(PretrainOptions(out=earlier)).get_vocab()


def test_the_decoder_is_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored latents would no longer fit if the encoder moved too."""
    narrow = {name: (8,) * 4 if name.endswith("channels") and "block" in name else value
              for name, value in pretrain.AUTOENCODER.items()}  # fmt: skip
    folder = tmp_path / "corpus"
    folder.mkdir()
    scenes = [{"caption": "photo of a dog", "split": split} for split in ("train", "train", "train", "held out")]
    (folder / "scenes.jsonl").write_text("\n".join(map(json.dumps, scenes)))
    np.save(folder / "pictures.npy", np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8))
    out = tmp_path / "out"
    torch.manual_seed(0)
    before = AutoencoderTiny(**narrow)
    before.save_pretrained(out / "vae")
    options = PretrainOptions(out=out, decoder=Stage(steps=3, batch=2, rate=1e-2))
    corpus = Corpus(folder)
    store_latents(options, corpus)
    train_decoder(options, corpus)
    after = AutoencoderTiny.from_pretrained(out / "decoded").state_dict()
    moved = {name.split(".")[0] for name, weight in before.state_dict().items() if not torch.equal(weight, after[name])}
    assert moved == {"decoder"}
