"""The text features of words in captions, from which the constraints of a merge are made.

The module knows nothing of concepts and of what a merge keeps.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from moongate.backbone import Backbone
from moongate.backbone.rare_tokens import latest
from moongate.data import with_words
from moongate.errors import TokenError
from moongate.merging.neutral import encoded

__all__ = [
    "ANYWHERE",
    "BESIDE",
    "ELSEWHERE",
    "feature_width",
    "filled",
    "fits",
    "fitting",
    "leading",
    "pieces",
    "stand_ins",
    "word_features",
]

STYLES = ("photo of a {}", "painting of a {}", "sketch of a {}", "close up photo of a {}")
PLACES = ("in a forest", "in a city", "in the mountains", "in the desert", "on a table", "in the water", "on a street")
NOUNS = ("dog", "tree", "car", "house", "chair", "cup", "ball", "boat")
ELSEWHERE = tuple(f"{style} {place}" for style in STYLES for place in PLACES)
"""Contexts with a subject alone. None is one in which errors are reported."""
KINDS = ("photo", "close up photo", "drawing", "painting", "watercolor painting", "sketch", "3d render", "pixel art")
FORMS = (*(f"{kind} of a {{}}" for kind in KINDS), "a {}", "the {}", "a small {}", "an old {}", "a green {}", "many {}")
ANYWHERE = tuple(f"{form} {place}".strip() for form in FORMS for place in ("", *PLACES[:2], "on a table"))
"""Contexts of words of the base, which occur in sentences of any kind; none is one in which errors are reported."""
STAND_IN = "<stand-in-{}>"
BESIDE = tuple(
    frame.format(f"{STAND_IN.format(number % 4)} {noun}")
    for frame in ("photo of a {} and a {{}}", "a {} next to a {{}}", "painting of a {} with a {{}}")
    for number, noun in enumerate(NOUNS)
)
"""Contexts with a subject behind another one, for which a rare token stands."""
PERTURBATION = 0.1
"""Size of the perturbation of a rare token's row, relative to the row: that of one that was trained."""


def stand_ins(backbone: Backbone) -> Mapping[str, Float[Tensor, " width"]]:
    """Return rows for the tokens in `BESIDE`: rare tokens, slightly perturbed as by training; always the same."""
    generator = torch.Generator().manual_seed(0)
    rare = backbone.rare_tokens or latest(backbone)[:4]
    rows = {}
    for number in range(4):
        row = backbone.token_row(rare[-1 - number % len(rare)]).detach().cpu()
        noise = torch.randn(row.shape, generator=generator)
        rows[STAND_IN.format(number)] = row + PERTURBATION * row.norm() * noise / noise.norm()
    return rows


def fitting(backbone: Backbone, words: str, contexts: Sequence[str]) -> list[str]:
    """Return those of `contexts` that fit into the text encoder and hold the words once when they are filled in."""
    wanted = pieces(backbone, words)
    captions = {context: filled(context, words) for context in contexts}
    fit = {context: pieces(backbone, caption) for context, caption in captions.items() if fits(backbone, caption)}
    return [context for context, ids in fit.items() if len(_occurrences(ids, wanted)) == len(wanted)]


def fits(backbone: Backbone, caption: str) -> bool:
    """Return whether the text encoder reads the whole caption."""
    return len(backbone.tokenizer(caption).input_ids) <= backbone.tokenizer.model_max_length


def feature_width(backbone: Backbone) -> int:
    """Return the width of the text features that keys and values are made of."""
    return next(iter(backbone.weights("cross-attention-kv").values())).shape[1]


def leading(rows: Float[Tensor, "rows width"], count: int) -> Float[Tensor, "_ width"]:
    """Return at most `count` rows with the Gram matrix of all, or as nearly as so few can: the principal directions."""
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    return (values[:, None] * right)[:count]


def filled(context: str, *subjects: str) -> str:
    """Return a context with the words of subjects in place of `{}`; `a {}` becomes "an armchair" where it should."""
    remaining = iter(subjects)
    return with_words(context, "{}", lambda _place: next(remaining))


def word_features(
    backbone: Backbone, words: str, captions: Sequence[str], *, others: Sequence[str] = (), with_end: bool
) -> Float[Tensor, "features width"]:
    """Return the features of words in captions.

    Args:
        backbone: The base model with the tokens of all subjects in use.
        words: The words, such as those of a subject.
        captions: Captions that hold the words.
        others: The words of all subjects. Where `words` are part of longer ones ("bear" in "<one> bear"), they do not
            count.
        with_end: Whether to add the feature of each caption's end token, which sums the caption up.

    Returns:
        Features in float64, caption by caption.

    Raises:
        TokenError: A caption does not hold the words within the length that the model reads.
    """
    wanted = pieces(backbone, words)
    longer = [other for other in (pieces(backbone, other) for other in others) if len(other) > len(wanted)]
    rows = []
    read = [caption for batch in encoded(backbone, captions, padded=False) for caption in zip(*batch, strict=True)]
    for caption, (features, ids, end) in zip(captions, read, strict=True):
        until_end = ids[: int(end)].tolist()
        of_others = {position for other in longer for position in _occurrences(until_end, other)}
        positions = [position for position in _occurrences(until_end, wanted) if position not in of_others]
        if not positions:
            raise TokenError(
                f"{words!r} does not occur in {caption!r} after it is cut to the {len(ids)} tokens that the "
                "model reads. Shorten the caption."
            )
        rows.append(features[[*positions, int(end)] if with_end else positions])
    return torch.cat(rows)


def pieces(backbone: Backbone, words: str) -> list[int]:
    """Return the token ids of words, without start and end."""
    return list(backbone.tokenizer(words).input_ids[1:-1])


def _occurrences(ids: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return the positions of everything in `ids` that belongs to an occurrence of `wanted`."""
    starts = [start for start in range(len(ids)) if list(ids[start : start + len(wanted)]) == list(wanted)]
    return [start + offset for start in starts for offset in range(len(wanted))]
