"""Train the tokenizer and the text encoder from nothing: `python -m recipe.pretrain.text --out runs/pocket/text`.

This stage was run once. Its text encoder has been frozen since, because the denoiser depends on it: all later stages
use the one that is shipped, unless `--text` names another. A small CLIP is trained contrastively; its text tower
conditions the denoiser. Writes `tokenizer/`, `text_encoder/`, `image_encoder/`, `caption_projection.safetensors` and
`rare_tokens.json`; the command resumes.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from moongate.backbone import PROJECTION, PROJECTION_FILE
from moongate.files import write_atomically
from recipe.command import command
from recipe.corpus import Corpus
from recipe.fitting import Cosine, Stage, fit, native_autocast
from recipe.networks import TEXT_WIDTH, write_weights
from recipe.pretrain.pieces import CONTEXT_TOKENS, learn_pieces

__all__ = ["RARE_FILE", "TextOptions", "contrastive_loss", "learn_tokenizer", "train_text"]

RARE_FILE = "rare_tokens.json"
RARE_OCCURRENCES = (5, 10)
"""A token is rare when the captions hold it this often (paper, App. D)."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Where to read and write, and how long to train."""

    corpus: Path = Path("corpus")
    """Folder of the corpus."""
    out: Path = Path("runs/pocket/text")
    """Output folder."""
    steps: int = 500
    """Training steps."""
    batch: int = 128
    """Pairs of picture and caption in a step."""
    lr: float = 1e-3
    """Largest learning rate."""
    device: str = "cpu"
    """Device to compute on."""
    seed: int = 1
    """Seed of all randomness."""


def train_text(options: TextOptions) -> None:
    """Learn the tokenizer, then train both towers.

    Raises:
        CorpusError: the corpus is not finished.
        OptionError: the folder holds a run with other settings.
    """
    corpus = Corpus(options.corpus)
    tokenizer = learn_tokenizer(corpus, options.out)
    torch.manual_seed(options.seed)
    model = CLIPModel(_configuration(tokenizer))
    nn.init.eye_(model.text_projection.weight)
    model.to(options.device)
    ids = tokenizer(corpus.captions, padding=True, truncation=True, max_length=CONTEXT_TOKENS, return_tensors="pt")
    ids = ids.input_ids

    def losses(generator: torch.Generator, step: int) -> dict[str, Tensor]:
        chosen = torch.randint(0, corpus.training, (options.batch,), generator=generator).sort().values
        with native_autocast(options.device):
            output = model(
                input_ids=ids[chosen].to(options.device), pixel_values=corpus.images(chosen).to(options.device)
            )
        return {"contrastive": contrastive_loss(output.logits_per_text.float(), ids[chosen])}

    stage = Stage(batch=options.batch, lr=options.lr, seed=options.seed, device=options.device)
    fit(model, losses, Cosine(steps=options.steps), stage, folder=options.out)
    model.cpu().save_pretrained(options.out / "clip")
    CLIPTextModel.from_pretrained(options.out / "clip").save_pretrained(options.out / "text_encoder")
    CLIPVisionModelWithProjection.from_pretrained(options.out / "clip").save_pretrained(options.out / "image_encoder")
    write_weights(options.out / PROJECTION_FILE, {PROJECTION: model.text_projection.weight})


def learn_tokenizer(corpus: Corpus, folder: Path) -> CLIPTokenizer:
    """Learn byte-pair pieces on the training captions, and note which are rare (paper, App. D).

    A tokenizer that is there is kept.
    """
    if (folder / RARE_FILE).exists():
        return CLIPTokenizer.from_pretrained(folder / "tokenizer")
    captions = corpus.captions[: corpus.training]
    tokenizer = learn_pieces(captions)
    counts = Counter(token for caption in captions for token in tokenizer(caption).input_ids)
    low, high = RARE_OCCURRENCES
    tokenizer.save_pretrained(folder / "tokenizer")
    rare = [token for token, count in sorted(counts.items()) if low <= count <= high]
    write_atomically(folder / RARE_FILE, (json.dumps({"ids": rare}) + "\n").encode())
    return tokenizer


def contrastive_loss(
    logits: Float[Tensor, "captions pictures"], ids: Int[Tensor, "captions tokens"]
) -> Float[Tensor, ""]:
    """Return the cross-entropy of finding each other's partner; equal captions share their pictures."""
    same = ids[:, None].eq(ids[None]).all(-1).to(logits)
    truth = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def _configuration(tokenizer: CLIPTokenizer) -> CLIPConfig:
    common = {"intermediate_size": 4 * TEXT_WIDTH, "hidden_act": "gelu", "projection_dim": TEXT_WIDTH}
    text = common | {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = common | {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "image_size": 128,
        "patch_size": 16,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(TextOptions, train_text, description=__doc__)
