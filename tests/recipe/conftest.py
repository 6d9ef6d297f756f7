"""What the first stages make of a tiny corpus, once for all tests of the recipe."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recipe import networks
from recipe.pretrain import decoder
from recipe.pretrain import prepare as preparing
from recipe.pretrain.autoencoder import AutoencoderOptions, train_autoencoder
from recipe.pretrain.prepare import PrepareOptions, prepare
from recipe.report import make_prompts
from recipe.team import Team
from tiny_corpus import AUTOENCODER, DENOISER, FixedPerception, fixed_features, make_corpus


@pytest.fixture(scope="session")
def _small_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "AUTOENCODER", AUTOENCODER)
        patch.setattr(networks, "DENOISER", DENOISER)
        yield


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("recipe") / "corpus")


@pytest.fixture(scope="session")
def autoencoder_file(_small_networks: None, corpus_folder: Path) -> Path:
    """Weights of an autoencoder after two steps."""
    out = corpus_folder.parent / "autoencoder"
    train_autoencoder(AutoencoderOptions(corpus=corpus_folder, out=out, start_from=None, steps=2, batch=2), Team())
    return out / "weights.safetensors"


@pytest.fixture(scope="session")
def prepared_folder(corpus_folder: Path, autoencoder_file: Path) -> Path:
    """Everything the denoiser is trained on, with `fixed_features` in place of EfficientNet-Lite0."""
    out = corpus_folder.parent / "prepared"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "_repa_encoder", fixed_features)
        prepare(PrepareOptions(corpus=corpus_folder, autoencoder=autoencoder_file, out=out, workers=1))
    return out


@pytest.fixture
def fixed_perception(monkeypatch: pytest.MonkeyPatch) -> None:
    """`FixedPerception` in place of EfficientNet-Lite1, which the extra "corpus" alone installs."""
    monkeypatch.setattr(decoder, "Perception", FixedPerception)


@pytest.fixture
def noise_corpus(tmp_path: Path) -> Path:
    """A corpus of 20 training and 12 held-out pictures of noise.

    Its scenes are the report's prompts: every third shows two objects. Every fifth caption names a size.
    """
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "pictures.npy", rng.integers(0, 256, (32, 128, 128, 3), dtype=np.uint8))
    lines = []
    for index, content in enumerate(make_prompts(32)):
        phrase = "close up " if index % 5 == 0 else ""
        scene = {"caption": phrase + content.caption, "categories": content.categories}
        scene |= {"place": content.place, "style": content.style}
        lines.append(json.dumps(scene | {"split": "train" if index < 20 else "held out"}))
    (folder / "scenes.jsonl").write_text("\n".join(lines))
    return folder
