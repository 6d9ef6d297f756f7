"""Train CLIP's image tower for a frozen text encoder: `python -m recipe.pretrain.image_tower --out runs/pocket/clip`.

The text encoder and its tokenizer are frozen, because the denoiser depends on them; the image tower and both
projections are trained further on the corpus. Writes `image_encoder/` and `caption_projection.safetensors`; the
command resumes.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from moongate.backbone import PROJECTION, PROJECTION_FILE
from moongate.backbone.loading import quiet
from moongate.errors import OptionError
from moongate.pocket import weights_folder
from recipe.command import command
from recipe.corpus import Corpus
from recipe.fitting import Cosine, Stage, fit, native_autocast
from recipe.networks import TEXT_WIDTH, read_weights, write_weights
from recipe.pretrain.text import contrastive_loss

__all__ = ["ImageTowerOptions", "train_image_tower"]

IMAGE_TOWER = "image_encoder"
FIRST_SCALE, LARGEST_SCALE = 30.0, 100.0
"""Factor on cosines in the contrastive loss: at the start, and its limit."""
MEASURED_PICTURES, CHOICES = 1920, 128


@dataclass(frozen=True, kw_only=True)
class ImageTowerOptions:
    """Where to read and write, and how long to train."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    text: Path = field(default_factory=weights_folder)
    """Folder with `tokenizer/` and `text_encoder/`, which stay, and with the `image_encoder/` to begin with."""
    out: Path = Path("runs/pocket/clip")
    """Output folder."""
    steps: int = 1000
    """Training steps."""
    batch: int = 128
    """Pairs of picture and caption in a step."""
    lr: float = 1e-3
    """Largest learning rate."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 0
    """Seed of all randomness."""


def train_image_tower(options: ImageTowerOptions) -> None:
    """Train, and measure how often a held-out picture finds its caption among 128.

    Raises:
        CorpusError: the corpus is not finished.
        OptionError: a part of `text` is missing, or the output folder holds a run with other settings.
    """
    corpus = Corpus(options.corpus)
    for name in ("tokenizer", "text_encoder", IMAGE_TOWER, PROJECTION_FILE):
        if not (options.text / name).exists():
            raise OptionError(f"{options.text} has no {name}. Give a folder of pocket's weights as --text.")
    pooled, rows = _caption_features(corpus, options)
    with quiet():
        tower = CLIPVisionModelWithProjection.from_pretrained(options.text / IMAGE_TOWER, dtype=torch.float32)
    projection = nn.Linear(TEXT_WIDTH, TEXT_WIDTH, bias=False)
    projection.weight.data = read_weights(options.text / PROJECTION_FILE)[0][PROJECTION]
    model = nn.ModuleDict({"tower": tower, "projection": projection}).to(options.device)
    log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE), device=options.device))
    model.register_parameter("log_scale", log_scale)

    def logits(chosen: Int[Tensor, " n"]) -> Float[Tensor, "n n"]:
        with native_autocast(options.device):
            seen = tower(corpus.images(chosen).to(options.device)).image_embeds.float()
        captions = projection(pooled[rows[chosen]].to(options.device))
        scale = log_scale.exp().clamp(max=LARGEST_SCALE)
        return scale * F.normalize(captions, dim=1) @ F.normalize(seen, dim=1).T

    def losses(generator: torch.Generator, step: int) -> dict[str, Tensor]:
        chosen = torch.randint(0, corpus.training, (options.batch,), generator=generator).sort().values
        return {"contrastive": contrastive_loss(logits(chosen), rows[chosen, None].to(options.device))}

    hidden = [weight for name, weight in tower.named_parameters() if "encoder.layers" in name and weight.ndim == 2]
    stage = Stage(batch=options.batch, lr=options.lr, seed=options.seed, device=options.device)
    fit(model, losses, Cosine(steps=options.steps), stage, folder=options.out, muon=hidden)
    tower.cpu().save_pretrained(options.out / IMAGE_TOWER)
    write_weights(options.out / PROJECTION_FILE, {PROJECTION: projection.weight})
    tower.to(options.device)
    with torch.no_grad():
        right = [
            rows[part][logits(part).argmax(0).cpu()] == rows[part]
            for part in corpus.held_out(MEASURED_PICTURES).split(CHOICES)
        ]
    accuracy = torch.cat(right).float().mean()
    Console().print(f"{accuracy:.1%} of held-out pictures find their caption among {CHOICES}: {options.out}")


@torch.no_grad()
def _caption_features(
    corpus: Corpus, options: ImageTowerOptions
) -> tuple[Float[Tensor, "captions width"], Int[Tensor, " pictures"]]:
    """Return the pooled features of the distinct captions, and the row of each picture."""
    with quiet():
        tokenizer = CLIPTokenizer.from_pretrained(options.text / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(options.text / "text_encoder", dtype=torch.float32)
    encoder.to(options.device).eval()
    distinct = sorted(set(corpus.captions))
    row_of = {caption: row for row, caption in enumerate(distinct)}
    length, features = tokenizer.model_max_length, []
    for begin in track(range(0, len(distinct), 256), "Captions"):
        part = distinct[begin : begin + 256]
        ids = tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="pt").input_ids
        features.append(encoder(ids.to(options.device)).pooler_output.cpu())
    return torch.cat(features), torch.tensor([row_of[caption] for caption in corpus.captions])


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(ImageTowerOptions, train_image_tower, description=__doc__)
