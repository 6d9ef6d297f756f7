"""Write a folder that `StableDiffusionPipeline.from_pretrained` loads: `python -m recipe.pretrain.assemble`.

It puts the networks of the other stages together, in half precision, with `moongate.json` (what Moongate should know of
them) and `training.json` (how many pictures the denoiser has seen).
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console
from safetensors.torch import save
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from moongate.backbone import PROJECTION, PROJECTION_FILE, SETTINGS_FILE, Settings
from moongate.backbone.loading import quiet
from moongate.errors import OptionError
from moongate.files import write_atomically
from moongate.pocket import weights_folder
from recipe.command import command
from recipe.networks import load_into, make_autoencoder, make_denoiser, make_schedule, read_weights
from recipe.pretrain.denoiser import read_average
from recipe.pretrain.image_tower import IMAGE_TOWER

__all__ = ["TRAINING_FILE", "AssembleOptions", "assemble", "make_pipeline"]

TRAINING_FILE = "training.json"
"""File next to the weights that says how many pictures the denoiser has seen: `{"pictures_seen": 492000}`."""


@dataclass(frozen=True, kw_only=True)
class AssembleOptions:
    """Where to read and write."""

    denoiser: Path = Path("runs/pocket/denoiser/weights.safetensors")
    """Weights of the denoiser, or the `state.pt` of a run, whose average of the weights is taken."""
    autoencoder: Path = Path("runs/pocket/decoder/weights.safetensors")
    """Weights of the autoencoder, with the sharpened decoder."""
    text: Path = field(default_factory=weights_folder)
    """Folder with `tokenizer/` and `text_encoder/`."""
    images: Path = Path("runs/pocket/clip")
    """Folder with `image_encoder/` and `caption_projection.safetensors`."""
    settings: Path = field(default_factory=lambda: weights_folder() / SETTINGS_FILE)
    """The `moongate.json` to copy."""
    pictures_seen: int | None = None
    """Pictures that the denoiser has seen, if its file does not say so itself."""
    out: Path = Path("runs/pocket/weights")
    """Output folder; an earlier one is replaced."""


def assemble(options: AssembleOptions) -> None:
    """Read every part, then write the folder completely or not at all.

    Raises:
        OptionError: a part is missing or is not what it should be.
        BackboneError: `moongate.json` has an unknown key or value.
    """
    for path in (options.images / IMAGE_TOWER, options.images / PROJECTION_FILE, options.settings):
        if not path.exists():
            raise OptionError(f"There is no {path}. Run the stage that writes it first (recipe/README.md).")
    Settings.read(options.settings)
    pipeline, noted = make_pipeline(options.denoiser, autoencoder=options.autoencoder, text=options.text)
    pictures_seen = options.pictures_seen if noted is None else noted
    if pictures_seen is None:
        raise OptionError(f"{options.denoiser} does not say how many pictures it has seen. Give --pictures-seen.")
    projection = read_weights(options.images / PROJECTION_FILE)[0][PROJECTION]
    with quiet():
        tower = CLIPVisionModelWithProjection.from_pretrained(options.images / IMAGE_TOWER)
    folder = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    tower.half().save_pretrained(folder / IMAGE_TOWER)
    write_atomically(folder / PROJECTION_FILE, save({PROJECTION: projection.half().contiguous()}))
    config = folder / "text_encoder" / "config.json"  # transformers computes in the precision that is named here
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    shutil.copyfile(options.settings, folder / SETTINGS_FILE)
    (folder / TRAINING_FILE).write_text(json.dumps({"pictures_seen": pictures_seen}) + "\n")
    shutil.rmtree(options.out, ignore_errors=True)
    folder.replace(options.out)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    Console().print(f"{options.out}: {size / 1e6:.1f} MB, {pictures_seen:,} pictures seen")


def make_pipeline(
    denoiser: Path, *, autoencoder: Path | None, text: Path
) -> tuple[StableDiffusionPipeline, int | None]:
    """Return a pipeline in float32, and how many pictures its denoiser has seen if its file says so.

    Args:
        denoiser: its weights, or the state of a run.
        autoencoder: weights; None leaves them random, for drawing latents alone.
        text: a folder with `tokenizer/` and `text_encoder/`.

    Raises:
        OptionError: a part is missing or is not what it should be.
    """
    for name in ("tokenizer", "text_encoder"):
        if not (text / name).is_dir():
            raise OptionError(f"{text} has no {name}/. Give a folder of pocket's weights as --text.")
    unet, vae = make_denoiser(), make_autoencoder()
    pictures_seen = read_average(unet, denoiser)
    if autoencoder is not None:
        load_into(vae, autoencoder)
    with quiet():
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel.from_pretrained(text / "text_encoder", dtype=torch.float32),
            tokenizer=CLIPTokenizer.from_pretrained(text / "tokenizer"),
            unet=unet,
            scheduler=make_schedule(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return pipeline, pictures_seen


if __name__ == "__main__":
    command(AssembleOptions, assemble, description=__doc__)
