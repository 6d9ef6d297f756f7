"""What a merge must not change: the features of neutral captions, and their Gram matrix (paper, Sec. 3.3, C_reg)."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from moongate.backbone import Backbone
from moongate.errors import OptionError
from moongate.files import write_atomically

__all__ = ["HELD_OUT_EVERY", "encoded", "neutral_captions", "regularization_gram"]

HELD_OUT_EVERY = 10
"""Every so manieth neutral caption is kept out of the cost, to measure drift on."""
EMPTY_PROMPT_SHARE = 0.1
"""Weight of the empty prompt among the captions, as often as training leaves a caption out."""
ENCODE_AT_ONCE = 64
CAPTIONS_FILE = Path(__file__).with_name("captions.txt")


def neutral_captions(further: Sequence[str] = ()) -> list[str]:
    """Return the captions that come with the package, and further ones; duplicates are dropped."""
    lines = CAPTIONS_FILE.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.strip() for line in (*lines, *further) if line.strip()))


@torch.no_grad()
def encoded(
    backbone: Backbone, captions: Sequence[str]
) -> Iterator[tuple[Float[Tensor, "n tokens width"], Int[Tensor, "n tokens"], Int[Tensor, " n"]]]:
    """Yield float64 features [n, tokens, width], ids [n, tokens] and the position of the end token [n] on the CPU."""
    for begin in range(0, len(captions), ENCODE_AT_ONCE):
        part = captions[begin : begin + ENCODE_AT_ONCE]
        ids = backbone.token_ids(part).cpu()
        ends = (ids == backbone.tokenizer.eos_token_id).int().argmax(1)
        yield backbone.encode_text(part).features.cpu().double(), ids, ends


def regularization_gram(
    backbone: Backbone, captions: Sequence[str], *, cache: Path | None = None
) -> Float[Tensor, "width width"]:
    """Return the sum of f f^T over what the model attends to in neutral captions, float64.

    A caption counts with its start token, its words, its end token, and the mean over its padding; the empty prompt
    stands beside them. Every tenth caption is left out, for measuring drift.
    """
    used = [caption for number, caption in enumerate(captions) if number % HELD_OUT_EVERY]
    path = cache and cache / f"gram-{_digest(backbone, used)}.safetensors"
    if path and path.is_file():
        with contextlib.suppress(SafetensorError, KeyError):  # a damaged one is made again
            return load_file(path)["gram"]
    weighted = [(used, 1.0), ([""], EMPTY_PROMPT_SHARE * len(used))]
    gram: Tensor = torch.zeros(())
    for some, weight in weighted:
        for features, _, ends in encoded(backbone, some):
            places = torch.arange(features.shape[1])[None]
            padding = features.shape[1] - 1 - ends[:, None]
            weights = torch.where(places <= ends[:, None], 1.0, 1 / padding.clamp(min=1)) * weight
            rows = (features * weights.sqrt()[..., None]).flatten(0, 1)
            gram = gram + rows.T @ rows
    if path:
        with contextlib.suppress(OptionError):  # where nothing can be kept, the next merge takes a little longer
            write_atomically(path, save({"gram": gram}))
    return gram


def _digest(backbone: Backbone, captions: Sequence[str]) -> str:
    """Name captions as one text encoder reads them, by what it makes of the first few."""
    probe = next(encoded(backbone, captions[:4]))[0]
    content = hashlib.sha256("\n".join(captions).encode())
    content.update(probe.bfloat16().float().numpy().tobytes())
    return content.hexdigest()[:16]
