"""The stages of the recipe, one after the other, on a tiny corpus; `tests/recipe/corpus` covers building one."""

import json
from pathlib import Path

import pytest

from moongate.backbone import Backbone
from moongate.evaluation.networks.clip import Clip
from moongate.sampling import SampleOptions, sample
from recipe.pretrain.assemble import AssembleOptions, assemble
from recipe.pretrain.decoder import DecoderOptions, train_decoder
from recipe.pretrain.denoiser import DenoiserOptions, train_denoiser
from recipe.pretrain.drawn import DrawnOptions, draw_latents
from recipe.pretrain.image_tower import ImageTowerOptions, train_image_tower
from recipe.team import Team
from recipe.yardstick import YardstickOptions, measure


@pytest.mark.usefixtures("fixed_perception")
def test_every_stage_takes_what_the_stage_before_wrote(
    corpus_folder: Path, autoencoder_file: Path, prepared_folder: Path, tmp_path: Path
) -> None:
    read = {"corpus": corpus_folder, "prepared": prepared_folder}
    train_denoiser(DenoiserOptions(**read, out=tmp_path / "denoiser", pictures=8, batch=2), Team())
    drawn, denoiser = tmp_path / "drawn.safetensors", tmp_path / "denoiser" / "weights.safetensors"
    draw_latents(DrawnOptions(corpus=corpus_folder, denoiser=denoiser, out=drawn, count=3, steps=2))
    train_decoder(
        DecoderOptions(
            **read,
            autoencoder=autoencoder_file,
            drawn=drawn,
            out=tmp_path / "decoder",
            steps=2,
            batch=2,
            drawn_batch=1,
            least_psnr_db=0,
        )
    )
    train_image_tower(ImageTowerOptions(corpus=corpus_folder, out=tmp_path / "clip", steps=2, batch=4))
    autoencoder = tmp_path / "decoder" / "weights.safetensors"
    assemble(
        AssembleOptions(
            denoiser=denoiser,
            autoencoder=autoencoder,
            images=tmp_path / "clip",
            out=tmp_path / "weights",
        )
    )
    shares = measure(
        YardstickOptions(
            denoiser=tmp_path / "denoiser" / "state.pt",
            autoencoder=autoencoder,
            corpus=_of_known_categories(corpus_folder, tmp_path / "known"),
            sheet=tmp_path / "sheet.png",
            steps=1,
            per_category=1,
            categories=2,
        )
    )
    assert set(shares) == {"single", "both"}
    assert (tmp_path / "sheet.png").exists()
    assert json.loads((tmp_path / "weights" / "training.json").read_text()) == {"pictures_seen": 8}
    backbone = Backbone.load(tmp_path / "weights")
    (picture,) = sample(backbone, ["photo of a dog"], seeds=[0], options=SampleOptions(steps=1))
    assert picture.image.shape == (128, 128, 3)
    assert Clip.load(tmp_path / "weights").captions(["a dog"]).shape == (1, 256)


def _of_known_categories(corpus: Path, folder: Path) -> Path:
    """Copy a corpus, with categories that the shipped recognizer knows."""
    folder.mkdir()
    (folder / "pictures.npy").symlink_to(corpus / "pictures.npy")
    text = (corpus / "scenes.jsonl").read_text()
    (folder / "scenes.jsonl").write_text(text.replace('"ball"', '"dog"').replace('"chair"', '"cat"'))
    return folder
