import math
from pathlib import Path

import pytest
import torch

from moongate.errors import CorpusError, OptionError
from recipe.corpus import Corpus
from recipe.networks import load_into, make_autoencoder
from recipe.pretrain.autoencoder import AutoencoderOptions, _moved, psnr_db, train_autoencoder
from recipe.team import Team


def test_latents_and_pictures_are_moved_alike() -> None:
    """A picture that is its latent with cells of 8 pixels stays so, whatever the turn and the scale."""
    latents = torch.arange(64.0).view(1, 1, 8, 8)
    images = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
    for seed in range(12):
        moved, target = _moved(latents, images, torch.Generator().manual_seed(seed))
        assert target.shape[-1] == 8 * moved.shape[-1]
        smaller = torch.nn.functional.avg_pool2d(target, 8)
        torch.testing.assert_close(smaller, moved, atol=3.0, rtol=0)


def test_psnr_of_a_known_error(corpus_folder: Path) -> None:
    corpus = Corpus(corpus_folder)

    class Shifting(torch.nn.Module):
        """An autoencoder whose pictures are off by a tenth."""

        def encoder(self, images: torch.Tensor) -> torch.Tensor:
            return images * 0.5

        def decoder(self, latents: torch.Tensor) -> torch.Tensor:
            images = latents * 2
            return images + torch.where(images > 0, -0.1, 0.1)

    assert psnr_db(Shifting(), corpus, 5) == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)


def test_a_finished_autoencoder_is_written_with_its_psnr(autoencoder_file: Path) -> None:
    notes = load_into(make_autoencoder(), autoencoder_file)
    assert float(notes["psnr_db"]) > 0


def test_bad_input_is_refused_before_any_work(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"not a finished corpus: it has no scenes\.jsonl"):
        train_autoencoder(AutoencoderOptions(corpus=tmp_path), Team())
    options = AutoencoderOptions(corpus=corpus_folder, out=tmp_path / "out", start_from=tmp_path / "none")
    with pytest.raises(OptionError, match=r"There are no weights"):
        train_autoencoder(options, Team())
    assert not (tmp_path / "out").exists()
