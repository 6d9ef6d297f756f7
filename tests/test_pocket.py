import hashlib
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moongate import pocket
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.data import Regularization, Subject, square
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_picture
from moongate.errors import OptionError
from moongate.training import TrainOptions, train
from moongate.training.method import METHODS

SHIPPED_BYTES = 56e6


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load("pocket", device="cpu")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_plain_diffusers_loads_and_draws_it() -> None:
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = StableDiffusionPipeline.from_pretrained(pocket.weights_folder())
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("photo of a cat on the beach", num_inference_steps=4).images[0]
    assert image.size == (128, 128)
    assert np.asarray(image).std() > 10


def test_it_draws_what_plain_diffusers_draws_from_the_same_noise(backbone: Backbone) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from moongate.sampling import SampleOptions, sample

    pipeline = StableDiffusionPipeline.from_pretrained(pocket.weights_folder())
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    shape = (1, backbone.unet.config.in_channels, *(backbone.resolution_px // backbone.latent_scale,) * 2)
    prompt, noise = "photo of a dog in the snow", torch.randn(shape, generator=torch.Generator().manual_seed(3))
    theirs = pipeline(prompt, num_inference_steps=5, guidance_scale=6, latents=noise, output_type="np").images[0]
    options = SampleOptions(steps=5, guidance=6, scheduler="ddim")
    ours = next(iter(sample(backbone, [prompt], seeds=[3], options=options))).image
    assert np.abs(ours - theirs * 255).max() < 1.5


def test_it_is_what_the_design_says(backbone: Backbone) -> None:
    parameters = sum(weight.numel() for weight in backbone.unet.parameters())
    assert 10e6 <= parameters <= 15e6
    assert (backbone.resolution_px, backbone.latent_scale) == (128, 8)
    assert len(backbone.rare_tokens) >= 4
    assert backbone.train_timesteps == 1000
    weights = pocket.weights_folder()
    shipped = (weights, pocket.pool_folder(), weights.parent / "concepts", pocket.recognizer_file().parent)
    assert sum(path.stat().st_size for folder in shipped for path in files(folder)) < SHIPPED_BYTES


def test_every_word_of_the_pool_is_one_the_tokenizer_can_spell(backbone: Backbone) -> None:
    rows = (pocket.pool_folder() / "metadata.jsonl").read_text().splitlines()
    captions = [json.loads(row)["caption"] for row in rows]
    end = backbone.tokenizer.eos_token_id
    for caption in [*captions, "Wörter, die niemand kennt: 42!"]:
        ids = backbone.tokenizer(caption).input_ids
        assert end not in ids[:-1], caption  # the end token also stands for what cannot be spelled
    assert backbone.tokenizer.tokenize("teddy bear") == ["teddy</w>", "bear</w>"]


def test_examples_have_pictures_to_learn_from_and_others_to_judge_by() -> None:
    found = pocket.examples()
    assert len(found) >= 12
    for example in found.values():
        training, evaluation = find_pictures(example.training), find_pictures(example.evaluation)
        assert 5 <= len(training) <= 8
        assert len(evaluation) == 20
        digests = {hashlib.sha256(path.read_bytes()).digest() for path in training + evaluation}
        assert len(digests) == len(training) + len(evaluation)
        assert read_picture(training[0]).shape == (128, 128, 3)
        captions = Subject.load(training, category=example.category, token="<it>").captions
        assert len(set(captions)) == len(training)  # each says another place
        assert all(re.fullmatch(rf"{example.style} of a <it> {example.category} \w.*", each) for each in captions)
    with pytest.raises(OptionError, match=r"no example 'unicorn'\. Known: .*teddyBear"):
        pocket.example("unicorn")


def test_the_pool_names_every_examples_category() -> None:
    for example in pocket.examples().values():
        regularization = Regularization.load(
            pocket.pool_folder(), category=example.category, only_category=True, at_most=20
        )
        assert len(regularization.pictures) == 20


def denoising_loss(backbone: Backbone, pictures: list[np.ndarray], captions: list[str]) -> float:
    """Mean squared error of the prediction over fixed noise at ten noise levels, on whole pictures."""
    generator = torch.Generator().manual_seed(0)
    latents = backbone.encode_images(torch.stack([square(picture, 128) for picture in pictures]))
    total = 0.0
    with torch.no_grad():
        text = backbone.encode_text(captions)
        for level in range(50, 1000, 100):
            noise = torch.randn(latents.shape, generator=generator)
            times = torch.full((len(latents),), level)
            noisy = backbone.schedule.add_noise(latents, noise, times)
            error = backbone.predict(noisy, times, text) - backbone.target(latents, noise, times)
            total += float(error.square().mean()) / 10
    return total


@pytest.fixture(scope="module")
def taught(backbone: Backbone) -> Concept:
    example = pocket.example("teddyBear")
    subject = Subject.load(example.training, category=example.category, token="<mine>")
    paper = replace(subject, captions=("photo of a <mine> teddy bear",) * len(subject.pictures))  # no place, as below
    prior = Regularization.load(pocket.pool_folder(), category=example.category, only_category=True)
    return train(backbone, [paper], [prior], METHODS["custom-diffusion"], options=TrainOptions(steps=60))


@pytest.mark.slow
def test_training_helps_on_held_out_pictures_of_the_concept(backbone: Backbone, taught: Concept) -> None:
    pictures = [read_picture(path) for path in sorted(files(pocket.example("teddyBear").evaluation))]
    before = denoising_loss(backbone, pictures, ["photo of a teddy bear"] * len(pictures))
    with taught.applied(backbone):
        after = denoising_loss(backbone, pictures, ["photo of a <mine> teddy bear"] * len(pictures))
    assert after < 0.97 * before


@pytest.mark.slow
def test_training_leaves_other_categories_within_a_band(backbone: Backbone, taught: Concept) -> None:
    rows = [json.loads(row) for row in (pocket.pool_folder() / "metadata.jsonl").read_text().splitlines()]
    others = [row for row in rows if "teddy bear" not in row["categories"]][:64]
    pictures = [read_picture(pocket.pool_folder() / row["file_name"]) for row in others]
    captions = [row["caption"] for row in others]
    before = denoising_loss(backbone, pictures, captions)
    with taught.applied(backbone):
        after = denoising_loss(backbone, pictures, captions)
    assert abs(after - before) < 0.05 * before
