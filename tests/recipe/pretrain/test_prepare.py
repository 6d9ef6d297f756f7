import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from moongate.errors import CorpusError, MissingLibrary, OptionError
from moongate.pocket import weights_folder
from recipe.corpus import Corpus
from recipe.networks import load_into, make_autoencoder
from recipe.pretrain import prepare as preparing
from recipe.pretrain.prepare import Parts, Prepared, PrepareOptions, prepare
from tiny_corpus import fixed_features


@pytest.fixture
def options(
    corpus_folder: Path,
    autoencoder_file: Path,
    prepared_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> PrepareOptions:
    """Options for a copy of what is prepared."""
    monkeypatch.setattr(preparing, "_repa_encoder", fixed_features)
    shutil.copytree(prepared_folder, tmp_path / "prepared")
    return PrepareOptions(corpus=corpus_folder, autoencoder=autoencoder_file, out=tmp_path / "prepared", workers=1)


def test_rows_are_those_of_the_pictures_and_captions(
    corpus_folder: Path, autoencoder_file: Path, prepared_folder: Path
) -> None:
    corpus, prepared = Corpus(corpus_folder), Prepared(prepared_folder, corpus_folder)
    model = make_autoencoder()
    load_into(model, autoencoder_file)
    chosen = torch.tensor([31, 2, 17])
    with torch.no_grad():
        latents = model.encoder(corpus.images(chosen))
    torch.testing.assert_close(prepared.latents[chosen], latents, atol=0.05, rtol=0.05)
    assert prepared.features[chosen].shape == (3, 112, 8, 8)
    tokenizer = CLIPTokenizer.from_pretrained(weights_folder() / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(weights_folder() / "text_encoder", dtype=torch.float32)
    captions = [corpus.captions[31], ""]
    ids = tokenizer(captions, padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = encoder(ids).last_hidden_state
    torch.testing.assert_close(prepared.text(torch.tensor([31, -1])), expected, atol=1e-2, rtol=1e-2)
    assert prepared.training == corpus.training
    assert all(len(corpus.scenes[index]["categories"]) == 2 for index in prepared.pairs)
    assert len(prepared.pairs) + len(prepared.singles) == corpus.training


def test_features_can_be_left_out(options: PrepareOptions) -> None:
    for part in options.out.glob("features_*"):
        part.unlink()
    prepare(replace(options, features=False))
    assert not list(options.out.glob("features_*"))
    prepare(options)
    assert list(options.out.glob("features_*"))


def test_missing_parts_are_computed_to_the_same_values(
    options: PrepareOptions, prepared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (options.out / "latents_0.pt").unlink()
    (options.out / "text.pt").unlink()
    with pytest.raises(CorpusError, match=r"not completely prepared: it has no text\.pt"):
        Prepared(options.out, options.corpus)
    with pytest.raises(CorpusError, match=r"no latents of the pictures 0 to 31"):
        Parts(options.out, "latents", 32)
    monkeypatch.setattr(preparing, "PART_PICTURES", 20)
    prepare(options)
    assert sorted(path.name for path in options.out.glob("latents_*.pt")) == ["latents_0.pt", "latents_20.pt"]
    chosen = torch.tensor([0, 19, 20, 31])
    whole, parts = (Prepared(folder, options.corpus) for folder in (prepared_folder, options.out))
    assert torch.equal(whole.latents[chosen], parts.latents[chosen])
    assert torch.equal(whole.text(chosen), parts.text(chosen))


def test_parts_of_unknown_origin_are_kept_only_when_they_agree(options: PrepareOptions) -> None:
    (options.out / "prepared.json").unlink()
    prepare(options)
    assert (options.out / "prepared.json").exists()
    (options.out / "prepared.json").unlink()
    latents = torch.load(options.out / "latents_0.pt", weights_only=True)
    torch.save(latents.flip(1), options.out / "latents_0.pt")
    with pytest.raises(CorpusError, match=r"latents_0\.pt does not belong to this corpus and these networks"):
        prepare(options)


def test_another_corpus_and_another_autoencoder_are_refused(options: PrepareOptions, tmp_path: Path) -> None:
    other = tmp_path / "corpus"
    other.mkdir()
    scenes = (options.corpus / "scenes.jsonl").read_text()
    (other / "scenes.jsonl").write_text(scenes.replace("ball", "bell"))
    np.save(other / "pictures.npy", np.load(options.corpus / "pictures.npy"))
    with pytest.raises(OptionError, match=r"prepared with another corpus"):
        prepare(PrepareOptions(**(vars(options) | {"corpus": other})))
    with pytest.raises(CorpusError, match=r"prepared from another corpus"):
        Prepared(options.out, other)
    manifest = json.loads((options.out / "prepared.json").read_text())
    (options.out / "prepared.json").write_text(json.dumps(manifest | {"autoencoder": "0"}))
    with pytest.raises(OptionError, match=r"prepared with another autoencoder"):
        prepare(options)


def test_a_missing_network_is_named_before_any_work(
    corpus_folder: Path, autoencoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingLibrary, match=r"pip install '\.\[evaluation\]'"):
        prepare(PrepareOptions(corpus=corpus_folder, autoencoder=autoencoder_file, out=tmp_path / "prepared"))
    assert not (tmp_path / "prepared").exists()
