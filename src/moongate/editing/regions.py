"""Regions: keep the subjects of one picture apart, each where the user wants it.

Several subjects in one picture bleed into one another, because every position attends to the words of all of them. It
does not help to hide a subject's own words outside its region: the end of a prompt and its padding carry the whole
prompt's meaning too. So each region reads a text of its own, in which the words of the other regions are replaced by
its own (`region_texts`), and what lies outside of all regions reads the prompt without the words of any. The
cross-attention of a position is the mean of its attention to these texts, weighted by how far it lies in each region.

Positions of the picture also attend to one another, by which one subject's looks may reach the other's region. With
`apart_share` no position of a region attends to one of another region in the first steps. By default they do: kept
apart, the halves of pocket's pictures got backgrounds of their own, and fewer showed both subjects.

The words are replaced and not left out, because the number of subjects is part of what a text says of the layout: where
one half of a picture read of a cat alone and the other of a lamp alone, pocket drew one mixture of both in the middle.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, permutations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention

from moongate.backbone import Backbone
from moongate.backbone.attention import computed, layer_size, self_attentions
from moongate.errors import OptionError
from moongate.sampling import (
    Sample,
    SampleOptions,
    check_pairs,
    check_prompt,
    is_guided,
    latent_shape,
    sample,
    timed_scheduler,
)
from moongate.texts import parse_yaml, read_text

__all__ = [
    "Region",
    "RegionOptions",
    "box_weights",
    "of_subjects",
    "parse_region",
    "read_regions",
    "region_texts",
    "sample_in_regions",
]

LEAST_WEIGHT = 1e-5
"""Less than this is what rounding leaves where the soft edges of two regions meet, and counts as nothing."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Some words of a prompt, and the rectangle in which they act.

    Raises:
        OptionError: The rectangle is empty, or not inside the picture.
    """

    words: str
    """Words of the prompt, such as "<bear> teddy bear"."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, as shares of the picture's width and height, from 0 to 1."""
    prompt: str | None = None
    """What is read inside the rectangle; `region_texts` derives it from the prompt when None."""

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # also refuses what is not a number
            raise OptionError(
                f"The region of {self.words!r} is {', '.join(f'{edge:g}' for edge in self.box)}. Give left, top, right "
                "and bottom as shares of the picture, from 0 to 1, with left < right and top < bottom."
            )


@dataclass(frozen=True, kw_only=True)
class RegionOptions:
    """How strictly subjects are kept in their regions."""

    softness: float = 0.1
    """Width of the edges, as a share of the picture's sides. A region's weight is one half on its border."""
    share: float = 1.0
    """Share of the steps, from the first, in which regions hold."""
    apart_share: float = 0.0
    """Share of the steps, from the first and at most `share`, in which positions of different regions do not attend to
    one another."""

    def __post_init__(self) -> None:
        for name in ("softness", "share", "apart_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be from 0 to 1.")


def parse_region(text: str) -> Region:
    """Read a region as it is written on a command line: `<bear>=0,0,0.5,1`.

    Raises:
        OptionError: The text has another form, or the rectangle is not inside the picture.
    """
    words, _, numbers = text.rpartition("=")
    return _region(words, numbers.split(","), text)


def read_regions(file: Path) -> list[Region]:
    """Read a YAML file that maps words to rectangles: `"<bear>": [0, 0, 0.5, 1]`.

    Instead of its four numbers, a region may have a mapping of `box`, the numbers, and `prompt`, its own text.

    Raises:
        OptionError: There is no such file, or it has another form.
    """
    try:
        content = parse_yaml(read_text(file))
    except OSError as error:
        raise OptionError(f"{file} cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise OptionError(f"{file} is not YAML that can be read: {error}. {_FORM}.") from error
    if not isinstance(content, dict) or not content:
        raise OptionError(f"{file} maps no words to regions. {_FORM}.")
    return [_described(words, value, str(file)) for words, value in content.items()]


def of_subjects(regions: Sequence[Region], subjects: Sequence[str], prompts: Sequence[str]) -> list[Region]:
    """Return the regions; where the words of one are a subject's token, they become all words of the subject.

    They stay as they are if a prompt does not have all of these words.

    Args:
        regions: Regions of words, such as "<bear>".
        subjects: The words of taught subjects, such as "<bear> teddy bear"; those without words have no region.
        prompts: The prompts to draw.
    """
    named = [
        subject
        for subject in subjects
        if subject.strip() and all(re.search(_phrase(subject), prompt, re.IGNORECASE) for prompt in prompts)
    ]
    words = {subject.split()[0]: subject for subject in named}
    return [replace(region, words=words.get(region.words, region.words)) for region in regions]


def region_texts(prompt: str, regions: Sequence[Region]) -> list[str]:
    """Return what is read in each region, and last what is read outside of all of them.

    In a region its own words, with their article, stand in the place of the words of each region: of "photo of an
    armchair and a dog in the snow", the region of "dog" reads "photo of a dog and a dog in the snow". Outside, the
    words and their articles are left out: "photo of and in the snow". All other words are read everywhere.

    Args:
        prompt: The whole prompt.
        regions: Regions of words in it. One with a prompt of its own reads that.

    Raises:
        OptionError: The prompt lacks the words of a region.
    """
    phrases = [_phrase(region.words) for region in regions]
    any_phrase = "|".join(sorted(phrases, key=len, reverse=True))  # a longer one before one that it contains
    found = [match[0] for match in re.finditer(any_phrase, prompt, re.IGNORECASE)]
    texts = []
    for region, phrase in zip(regions, phrases, strict=True):
        own = next((words for words in found if re.fullmatch(phrase, words, re.IGNORECASE)), None)
        if own is None:
            raise OptionError(
                f"The prompt {prompt!r} lacks {region.words!r}, which has a region. Give the words as they are in it, "
                "and each region words of its own."
            )
        texts.append(region.prompt or _replaced(prompt, any_phrase, own))
    return [*texts, " ".join(_replaced(prompt, any_phrase, "").split())]


def sample_in_regions(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    regions: Sequence[Region],
    options: SampleOptions | None = None,
    region_options: RegionOptions | None = None,
) -> Iterator[Sample]:
    """Draw pictures as `sample` does, with subjects kept in their regions.

    Args:
        backbone: The model, with any concepts applied and tokens in use.
        prompts: One for each picture; each must hold the words of all regions.
        seeds: One for each picture.
        regions: Where each subject belongs. Words without a region act everywhere; with no region at all, this is
            `sample`. Each region adds one cross-attention to the work of each layer.
        options: How pictures are drawn.
        region_options: How strictly subjects are kept in their regions.

    Returns:
        An iterator over the pictures in the order of the prompts. Each batch is drawn when it is asked for, and holds
        pictures of one prompt.

    Raises:
        TokenError: A prompt, or that of a region, has a `<token>` that no applied concept provides.
        OptionError: A prompt lacks the words of a region, one region lies wholly in another, or the sampling options do
            not fit.
    """
    options = (options or SampleOptions()).for_model(backbone)
    check_pairs(prompts, seeds)
    if not regions:
        return sample(backbone, prompts, seeds=seeds, options=options)
    _check_overlap(regions)
    for region in regions:
        if region.prompt is not None:
            check_prompt(backbone, region.prompt, kind="prompt of a region")
    batches = []
    for prompt, group in groupby(range(len(prompts)), key=lambda index: prompts[index]):
        rows = list(group)
        attend = _InRegions.of(backbone, prompt, regions, options, region_options or RegionOptions())
        own_seeds = [seeds[row] for row in rows]
        drawn = sample(backbone, [prompt] * len(rows), seeds=own_seeds, options=options, on_step=attend.step_done)
        batches.append((attend, drawn))
    return _drawn(backbone, batches)


# --- attention --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class _InRegions:
    """What computes the cross-attention of one prompt's pictures, each region with its own text."""

    backbone: Backbone
    texts: Sequence[str]
    """What is read in each region, and last what is read outside."""
    boxes: Sequence[tuple[float, float, float, float]]
    """The rectangle of each region."""
    size: tuple[int, int]
    """Height and width of the latents."""
    softness: float
    steps: int
    """Number of denoising steps of one batch."""
    held_steps: int
    """Number of steps, from the first, in which regions act."""
    apart_steps: int
    """Number of steps, from the first, in which positions of different regions do not attend to one another."""
    is_guided: bool
    """Whether the first half of each batch belongs to guidance."""
    _done: int = 0
    _weights: dict[int, Tensor] = field(default_factory=dict)
    """The weights of the texts in a layer, by its number of positions."""
    _visible: dict[int, Tensor] = field(default_factory=dict)
    """Which positions see which in a layer, by its number of positions."""

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        prompt: str,
        regions: Sequence[Region],
        options: SampleOptions,
        region_options: RegionOptions,
    ) -> "_InRegions":
        """Return what draws one prompt. Raises OptionError if it lacks the words of a region."""
        _, height, width = latent_shape(backbone, options)
        scheduler = timed_scheduler(backbone, options.scheduler, options.steps)
        return cls(
            backbone=backbone,
            texts=region_texts(prompt, regions),
            boxes=[region.box for region in regions],
            size=(height, width),
            softness=region_options.softness,
            steps=len(scheduler.timesteps),
            held_steps=round(region_options.share * len(scheduler.timesteps)),
            apart_steps=round(min(region_options.share, region_options.apart_share) * len(scheduler.timesteps)),
            is_guided=is_guided(backbone, options),
        )

    @cached_property
    def features(self) -> Float[Tensor, "texts tokens width"]:
        """What cross-attention reads of each text; encoded once drawing has begun."""
        return self.backbone.encode_text(self.texts).features

    @cached_property
    def layers(self) -> dict[str, Any]:
        """The layers of cross-attention, by name."""
        return dict(self.backbone.cross_attentions())

    def step_done(self) -> None:
        """Count a denoising step; the next batch begins again at the first."""
        self._done = (self._done + 1) % self.steps

    def __call__(
        self,
        layer: str,
        query: Float[Tensor, "n heads positions width"],
        key: Float[Tensor, "n heads tokens width"],
        value: Float[Tensor, "n heads tokens width"],
    ) -> Float[Tensor, "n heads positions width"]:
        """Return the attention of one layer, to text or of positions to one another."""
        if layer not in self.layers:
            return self._among_positions(query, key, value)
        if self._done >= self.held_steps:
            return attention(query, key, value)
        first = len(query) // 2 if self.is_guided else 0
        mean = torch.zeros_like(query[first:])
        for weight, own_key, own_value in zip(
            self._text_weights(query.shape[2]), *self._keys_and_values(layer), strict=True
        ):
            if weight.any():
                rows = (len(mean), -1, -1, -1)
                read = attention(query[first:], own_key.expand(rows), own_value.expand(rows))
                mean += weight[:, None].to(query) * read
        return torch.cat([attention(query[:first], key[:first], value[:first]), mean])

    def _among_positions(
        self,
        query: Float[Tensor, "n heads positions width"],
        key: Float[Tensor, "n heads positions width"],
        value: Float[Tensor, "n heads positions width"],
    ) -> Float[Tensor, "n heads positions width"]:
        """Return self-attention, in which the picture's positions do not see those of other regions."""
        seen = self._seen(query.shape[2])
        if self._done >= self.apart_steps or seen.all():
            return attention(query, key, value)
        first = len(query) // 2 if self.is_guided else 0
        parts = [attention(query[:first], key[:first], value[:first])]
        parts.append(attention(query[first:], key[first:], value[first:], attn_mask=seen.to(query.device)))
        return torch.cat(parts)

    def _seen(self, positions: int) -> Bool[Tensor, "positions positions"]:
        """Return which positions of a layer see which: those that no region has, or a common one."""
        if positions not in self._visible:
            size = layer_size(positions, self.size)
            inside = torch.stack([box_weights(box, size, softness=0).flatten() > 0.5 for box in self.boxes]).float()
            free = inside.sum(0) == 0
            self._visible[positions] = (inside.T @ inside > 0) | free[:, None] | free[None, :]
        return self._visible[positions]

    def _keys_and_values(self, layer: str) -> list[Float[Tensor, "texts heads tokens width"]]:
        """Return the keys and the values of each text in one layer."""
        module = self.layers[layer]
        parts = (module.to_k(self.features), module.to_v(self.features))
        return [part.unflatten(-1, (module.heads, -1)).transpose(1, 2) for part in parts]

    def _text_weights(self, positions: int) -> Float[Tensor, "texts positions"]:
        """Return the weight of each text at each position of a layer; at every position they sum to one."""
        if positions not in self._weights:
            size = layer_size(positions, self.size)
            inside = torch.stack([box_weights(box, size, softness=self.softness).flatten() for box in self.boxes])
            outside = 1 - inside.sum(0)
            outside = torch.where(outside > LEAST_WEIGHT, outside, 0)
            weights = torch.cat([inside, outside[None]])
            self._weights[positions] = weights / weights.sum(0)
        return self._weights[positions]


def box_weights(
    box: tuple[float, float, float, float], size: tuple[int, int], *, softness: float
) -> Float[Tensor, "height width"]:
    """Return the weight of each position of a layer: 1 inside a rectangle, 0 outside, soft at its edges.

    An edge of the picture is not an edge of the rectangle.

    Args:
        box: Left, top, right and bottom, as shares of the picture's sides.
        size: Height and width of the layer.
        softness: Width of the edges, as a share of the picture's sides.
    """
    left, top, right, bottom = box
    down, across = (_inside(low, high, count, softness) for low, high, count in
                    ((top, bottom, size[0]), (left, right, size[1])))  # fmt: skip
    return down[:, None] * across[None, :]


def _inside(low: float, high: float, count: int, softness: float) -> Float[Tensor, " count"]:
    """Return how far each of `count` positions along a side lies between two edges, from 0 to 1."""
    centers = (torch.arange(count) + 0.5) / count
    ramp = max(softness, 1e-6)
    after = torch.ones(count) if low == 0 else ((centers - low) / ramp + 0.5).clamp(0, 1)
    before = torch.ones(count) if high == 1 else ((high - centers) / ramp + 0.5).clamp(0, 1)
    return after * before


def _drawn(backbone: Backbone, batches: Sequence[tuple[_InRegions, Iterator[Sample]]]) -> Iterator[Sample]:
    for attend, samples in batches:
        while True:
            layers = backbone.cross_attentions() | (self_attentions(backbone) if attend.apart_steps else {})
            with computed(layers, attend):  # until the next picture, not while the caller has it
                drawn = next(samples, None)
            if drawn is None:
                break
            yield drawn


# --- texts ------------------------------------------------------------------------------------------------------------


def _phrase(words: str) -> str:
    """Return a pattern of some words with the article before them; not of a part of a word or of a token."""
    spelled = r"\s+".join(map(re.escape, words.split()))
    return rf"(?<![\w<-])(?:(?:an?|the)\s+)?(?<![\w<-]){spelled}(?![\w>-])"


def _replaced(prompt: str, pattern: str, words: str) -> str:
    """Return the prompt with some words in each place that the pattern fits."""
    return re.sub(pattern, lambda _: words, prompt, flags=re.IGNORECASE)


# --- reading ----------------------------------------------------------------------------------------------------------

_FORM = 'Write lines such as: "<bear> teddy bear": [0, 0, 0.5, 1]'


def _described(words: Any, value: Any, where: str) -> Region:
    """Return a region as a file describes it: four numbers, or a mapping of `box` and `prompt`."""
    if not isinstance(value, dict):
        return _region(words, value, where)
    prompt = value.get("prompt")
    if set(value) != {"box", "prompt"} or not (isinstance(prompt, str) and prompt.strip()):
        raise OptionError(
            f"The region {words!r} in {where} is not a `box` with four numbers and a `prompt` with its text. Write "
            'lines such as: "<bear>": {box: [0, 0, 0.5, 1], prompt: photo of a <bear> teddy bear}'
        )
    return replace(_region(words, value["box"], where), prompt=prompt.strip())


def _region(words: Any, numbers: Any, where: str) -> Region:
    try:
        left, top, right, bottom = (float(number) for number in numbers)
        if not (isinstance(words, str) and words.strip()):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"The region {words!r} in {where} is not words and four numbers: left, top, right and bottom, as shares of "
            'the picture from 0 to 1, such as <bear>=0,0,0.5,1 or, in a file, "<bear>": [0, 0, 0.5, 1].'
        ) from error
    return Region(words=words.strip(), box=(left, top, right, bottom))


def _check_overlap(regions: Sequence[Region]) -> None:
    """Raise OptionError if one region lies wholly in another, so that its subject would have no place of its own."""
    for one, other in permutations(regions, 2):
        (left, top, right, bottom), (low, high, far, deep) = one.box, other.box
        if low <= left and high <= top and right <= far and bottom <= deep:
            raise OptionError(
                f"The region of {one.words!r} lies wholly in that of {other.words!r}. Give each subject a place of its "
                "own."
            )
