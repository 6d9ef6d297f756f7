"""What a merge should not change: the text features of neutral captions (paper, Sec. 3.2, C_reg in Eq. 4).

The paper takes the features of about a thousand captions. The denoiser also attends to a caption's start token, to the
padding after its end and, for guidance, to the empty prompt; public codes constrain none of these. Here they count as
well: the padding of a caption once, whatever its length, and the empty prompt a tenth as often as all captions.

The module knows nothing of concepts.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from moongate.backbone import Backbone
from moongate.errors import ConceptFileError, OptionError
from moongate.files import digest, locked, write_atomically
from moongate.ranks import ALONE, Ranks
from moongate.tensor_files import CHECKSUM, checksum, read_tensors

__all__ = [
    "empty_prompt_features",
    "encoded",
    "held_out_features",
    "held_out_rows",
    "neutral_captions",
    "regularization_gram",
    "weighted_grams",
]

HELD_OUT_EVERY = 10
"""One caption in ten is held out: it is no part of the cost, and drift is measured on it."""
EMPTY_PROMPT_SHARE = 0.1
"""Weight of the empty prompt relative to all captions together, equal to the share of captions that training drops."""
ENCODE_AT_ONCE = 64
CAPTIONS_FILE = Path(__file__).with_name("captions.txt")


def neutral_captions(further: Sequence[str] = ()) -> list[str]:
    """Return the captions that come with the package, then `further` ones, without duplicates and empty lines."""
    lines = CAPTIONS_FILE.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line.strip() for line in (*lines, *further) if line.strip()))


@torch.no_grad()
def encoded(
    backbone: Backbone, captions: Sequence[str], *, padded: bool = True
) -> Iterator[tuple[Float[Tensor, "captions tokens width"], Int[Tensor, "captions tokens"], Int[Tensor, " captions"]]]:
    """Encode captions in batches.

    Args:
        backbone: The base model.
        captions: The captions.
        padded: Whether the features of the padding are wanted (`Backbone.encode_text`).

    Yields:
        For each batch, on the CPU: text features in float64, token ids, and the position of each caption's end token.
    """
    for begin in range(0, len(captions), ENCODE_AT_ONCE):
        batch = captions[begin : begin + ENCODE_AT_ONCE]
        ids = backbone.token_ids(batch).cpu()
        ends = (ids == backbone.tokenizer.eos_token_id).int().argmax(1)
        yield backbone.encode_text(batch, padded=padded).features.cpu().double(), ids, ends


def held_out_features(backbone: Backbone, captions: Sequence[str]) -> Float[Tensor, "features width"]:
    """Return the features of the captions that `regularization_gram` leaves out, from start token to end token."""
    return torch.cat(
        [
            features[: end + 1]
            for batch, _, ends in encoded(backbone, captions[::HELD_OUT_EVERY], padded=False)
            for features, end in zip(batch, ends, strict=True)
        ]
    )


def held_out_rows(
    backbone: Backbone, captions: Sequence[str], *, cache: Path | None = None
) -> Float[Tensor, "rows width"]:
    """Return rows with the Gram matrix of `held_out_features`, at most as many as the features are wide.

    What a matrix makes of them has the same sum of squares. They are the factor R of a QR decomposition.

    Args:
        backbone: The base model.
        captions: Neutral captions; one in ten counts.
        cache: As in `regularization_gram`.
    """

    def rows() -> Tensor:
        return torch.linalg.qr(held_out_features(backbone, captions), mode="r").R.contiguous()

    return _once("held-out", rows, backbone, captions[::HELD_OUT_EVERY], cache)


def empty_prompt_features(backbone: Backbone) -> Float[Tensor, "tokens width"]:
    """Return the features of the empty prompt, float64: its start token, its end, and the padding."""
    return next(encoded(backbone, [""]))[0][0]


def regularization_gram(
    backbone: Backbone, captions: Sequence[str], *, cache: Path | None = None, ranks: Ranks = ALONE
) -> Float[Tensor, "width width"]:
    """Return the Gram matrix of the regularization features, C_reg^T C_reg = sum of f f^T.

    Args:
        backbone: The base model.
        captions: Neutral captions; one in ten is left out (`held_out_features`).
        cache: Folder in which the matrix is kept for each text encoder and set of captions. Several processes may
            share it: one computes, the others wait. Not kept when None, or when the folder cannot be written.
        ranks: Processes that all want the matrix now, and read a share of the captions each; the first one's cache
            counts.

    Returns:
        The matrix in float64, the same bits for every number of ranks.
    """
    used = [caption for index, caption in enumerate(captions) if index % HELD_OUT_EVERY]
    return _once("gram", lambda: _gram(backbone, used, ranks), backbone, used, cache, ranks)


def _once(
    name: str,
    compute: Callable[[], Tensor],
    backbone: Backbone,
    captions: Sequence[str],
    cache: Path | None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the matrix of captions that the cache has under this name, or compute it and keep it there.

    The cache of the first rank counts for all, so that none waits for another that has found the matrix, and all have
    the same bits.
    """
    path = cache / f"{name}-{_digest(backbone, captions)}.safetensors" if cache and ranks.is_first else None
    with contextlib.ExitStack() as stack:
        if path:
            with contextlib.suppress(OptionError):  # without a lock, each process computes the same matrix
                stack.enter_context(locked(path))
        kept = ranks.of_first(_kept(path, name) if path else None)
        if kept is not None:
            return kept
        matrix = {name: compute()}
        if path:
            with contextlib.suppress(OptionError):  # if it cannot be kept, the next merge takes a second longer
                write_atomically(path, save(matrix, {CHECKSUM: checksum(matrix)}))
        return matrix[name]


def _kept(path: Path, name: str) -> Tensor | None:
    """Return the matrix that was kept in a file; None if the file is missing or damaged."""
    with contextlib.suppress(ConceptFileError, KeyError):
        tensors, header = read_tensors(path)
        if header[CHECKSUM] == checksum(tensors):
            return tensors[name]
    return None


def weighted_grams(
    backbone: Backbone, captions: Sequence[str], changes: Mapping[str, Sequence[Float[Tensor, "out width"]]]
) -> dict[str, Float[Tensor, "width width"]]:
    """Return a Gram matrix for each layer in which a feature counts by how far the concepts' own changes move it there.

    With m(f) = (sum over concepts n of |f D_n^T|^2)^(1/2), a feature f has the weight m(f) / mean of m, so that all
    features together weigh as much as they do alike. Where no concept moves any, all weigh the same.

    Args:
        backbone: The base model.
        captions: Neutral captions; one in ten is left out (`held_out_features`).
        changes: The change of each concept, by name of the matrix.
    """
    used = [caption for index, caption in enumerate(captions) if index % HELD_OUT_EVERY]
    features, weights = (torch.cat(parts) for parts in zip(*_features(backbone, _batches(used)), strict=True))
    grams = {}
    for layer, own in changes.items():
        squares = torch.zeros(features.shape[1], features.shape[1]).double()
        for change in own:
            squares += change.double().T @ change.double()
        moved = ((features @ squares) * features).sum(1).clamp(min=0).sqrt()
        in_danger = weights * moved / moved.mean() if moved.any() else weights
        scaled = features * in_danger.sqrt()[:, None]
        grams[layer] = scaled.T @ scaled
    return grams


def _gram(backbone: Backbone, captions: Sequence[str], ranks: Ranks) -> Float[Tensor, "width width"]:
    return reduce(torch.add, _matrices(backbone, _batches(captions), ranks))


def _matrices(
    backbone: Backbone, batches: Sequence[tuple[Sequence[str], float]], ranks: Ranks
) -> Iterator[Float[Tensor, "width width"]]:
    """Yield the matrix of each batch in their order, whichever rank computed it.

    The ranks exchange one each at a time, because those of all batches take half a gigabyte for SDXL.
    """
    for begin in range(0, len(batches), ranks.count):
        own = batches[begin : begin + ranks.count][ranks.index :][:1]  # in the last round some ranks have none
        rows = [features * weights.sqrt()[:, None] for features, weights in _features(backbone, own)]
        yield from chain(*ranks.collected([each.T @ each for each in rows]))


def _batches(captions: Sequence[str]) -> list[tuple[Sequence[str], float]]:
    """Return captions and the empty prompt in batches, with the weight of a caption in each."""
    parts = [captions[begin : begin + ENCODE_AT_ONCE] for begin in range(0, len(captions), ENCODE_AT_ONCE)]
    return [*((part, 1.0) for part in parts), ([""], EMPTY_PROMPT_SHARE * len(captions))]


def _features(
    backbone: Backbone, batches: Sequence[tuple[Sequence[str], float]]
) -> Iterator[tuple[Float[Tensor, "features width"], Float[Tensor, " features"]]]:
    """Yield the features of captions with their weights, batch by batch."""
    for captions, weight in batches:
        for features, _, ends in encoded(backbone, captions):
            positions = torch.arange(features.shape[1])[None]
            padding = features.shape[1] - 1 - ends[:, None]
            weights = torch.where(positions <= ends[:, None], 1.0, 1 / padding.clamp(min=1)) * weight
            yield features.flatten(0, 1), weights.flatten()


def _digest(backbone: Backbone, captions: Sequence[str]) -> str:
    """Identify captions as one text encoder reads them, by the captions and the features of the first four."""
    probe = next(encoded(backbone, captions[:4]))[0]
    return digest("\n".join(captions), probe.bfloat16().float().numpy().tobytes(), length=16)
