"""Draw latents for the decoder's critics: `python -m recipe.pretrain.drawn --denoiser runs/pocket/denoiser/state.pt`.

What a denoiser draws differs a little from what the encoder makes of real pictures. The decoder that also sees the
first learns to make real pictures of both (`recipe.pretrain.decoder --drawn`). Captions are those of the training
pictures. Writes one safetensors file with `latents`, float16 [n, 8, 16, 16].
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import save

from moongate.backbone import Backbone
from moongate.files import write_atomically
from moongate.limits import check_count
from moongate.pocket import weights_folder
from moongate.sampling import SampleOptions, denoised
from recipe.command import command
from recipe.corpus import Corpus
from recipe.fitting import native_autocast
from recipe.pretrain.assemble import make_pipeline

__all__ = ["LATENTS", "DrawnOptions", "draw_latents"]

LATENTS = "latents"
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class DrawnOptions:
    """Where to read and write, and how to draw."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    denoiser: Path = Path("runs/pocket/denoiser/state.pt")
    """Weights of the denoiser, or the `state.pt` of a run, whose average of the weights is taken."""
    text: Path = field(default_factory=weights_folder)
    """Folder with `tokenizer/` and `text_encoder/`."""
    out: Path = Path("runs/pocket/drawn.safetensors")
    """File to write."""
    count: int = 1536
    """Number of latents."""
    guidance: float = 4.0
    """Scale of classifier-free guidance; pocket's own unless given."""
    steps: int = 16
    """Denoising steps."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 0
    """Seed of captions and noise."""

    def __post_init__(self) -> None:
        for name in ("count", "steps"):
            check_count(name, getattr(self, name))


def draw_latents(options: DrawnOptions) -> None:
    """Draw, and write the file.

    Raises:
        CorpusError: the corpus is not finished.
        OptionError: the denoiser or the text encoder cannot be read, or the guidance is out of range.
    """
    sampling = SampleOptions(steps=options.steps, guidance=options.guidance, scheduler="dpm++")
    corpus = Corpus(options.corpus)
    pipeline, _ = make_pipeline(options.denoiser, autoencoder=None, text=options.text)
    backbone = Backbone(name="pocket", pipeline=pipeline.to(options.device))
    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randint(0, corpus.training, (options.count,), generator=generator)
    seeds = torch.randint(0, 2**62, (options.count,), generator=generator)
    parts = []
    for rows, of_rows in track([*zip(chosen.split(BATCH), seeds.split(BATCH), strict=True)], "Drawing"):
        captions = [corpus.captions[row] for row in rows.tolist()]
        with torch.no_grad(), native_autocast(options.device):
            parts.append(denoised(backbone, captions, of_rows.tolist(), sampling).cpu().half())
    write_atomically(options.out, save({LATENTS: torch.cat(parts)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(DrawnOptions, draw_latents, description=__doc__)
