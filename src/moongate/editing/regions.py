"""Regions: keep the subjects of one picture apart, each where the user wants it.

Several subjects in one picture bleed into one another, because every position attends to the words of all of them. In a
region, a subject's words are attended to inside a rectangle only: outside, a term is added to the scores before the
softmax, the logarithm of a weight that falls from 1 to 0 at the rectangle's edges. So the attention that is taken from
one subject's words goes to the other words of the prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, permutations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention

from moongate.backbone import Backbone
from moongate.backbone.attention import computed, layer_size
from moongate.editing.alignment import positions_of, spelled
from moongate.errors import OptionError
from moongate.sampling import Sample, SampleOptions, check_pairs, is_guided, make_scheduler, sample
from moongate.texts import parse_yaml

__all__ = ["Region", "RegionOptions", "box_weights", "of_subjects", "parse_region", "read_regions", "sample_in_regions"]

LEAST_WEIGHT = 1e-4
"""Weight of a word's attention far outside its region: a logarithm must be finite in every precision."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """Some words of a prompt, and the rectangle in which they are attended to.

    Raises:
        OptionError: The rectangle is empty, or not inside the picture.
    """

    words: str
    """Words of the prompt, such as "<bear> teddy bear"."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, as shares of the picture's width and height, from 0 to 1."""

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

    def __post_init__(self) -> None:
        for name in ("softness", "share"):
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

    Raises:
        OptionError: There is no such file, or it has another form.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{file} cannot be read ({error.strerror}). Check the path.") from error
    except ValueError as error:
        raise OptionError(f"{file} is not YAML that can be read: {error}. {_FORM}.") from error
    if not isinstance(content, dict) or not content:
        raise OptionError(f"{file} maps no words to regions. {_FORM}.")
    return [_region(words, numbers, str(file)) for words, numbers in content.items()]


def of_subjects(regions: Sequence[Region], subjects: Sequence[str], prompts: Sequence[str]) -> list[Region]:
    """Return the regions, those of a subject's token for all words of the subject if the prompts have them.

    Args:
        regions: Regions of words, such as "<bear>".
        subjects: The words of taught subjects, such as "<bear> teddy bear".
        prompts: The prompts to draw.
    """
    words = {subject.split()[0]: subject for subject in subjects if all(subject in prompt for prompt in prompts)}
    return [replace(region, words=words.get(region.words, region.words)) for region in regions]


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
        regions: Where each subject belongs. Words without a region are attended to everywhere; with no region at all,
            this is `sample`.
        options: How pictures are drawn.
        region_options: How strictly subjects are kept in their regions.

    Returns:
        An iterator over the pictures in the order of the prompts. Each batch is drawn when it is asked for, and holds
        pictures of one prompt.

    Raises:
        TokenError: A prompt has a `<token>` that no applied concept provides.
        OptionError: A prompt lacks the words of a region, one region lies wholly in another, or the sampling options do
            not fit.
    """
    options = (options or SampleOptions()).for_model(backbone)
    check_pairs(prompts, seeds)
    if not regions:
        return sample(backbone, prompts, seeds=seeds, options=options)
    _check_overlap(regions)
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
    """What computes cross-attention to one prompt, with some of its words kept in their regions."""

    boxes: Sequence[tuple[Sequence[int], tuple[float, float, float, float]]]
    """Positions of a region's words in the prompt, and its rectangle."""
    tokens: int
    """Number of tokens that the text encoder reads."""
    size: tuple[int, int]
    """Height and width of the latents."""
    softness: float
    steps: int
    """Number of denoising steps of one batch."""
    held_steps: int
    """In so many of them, from the first, regions hold."""
    is_guided: bool
    """Whether the first half of each batch belongs to guidance."""
    _done: int = 0
    _scores: dict[int, Tensor] = field(default_factory=dict)
    """What is added to the scores of a layer with so many positions."""

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
        words = backbone.words(prompt)
        boxes = []
        for region in regions:
            positions = positions_of(words, spelled(backbone.words(region.words)))
            if not positions:
                raise OptionError(
                    f"The prompt {prompt!r} lacks {region.words!r}, which has a region. Its words: "
                    f"{', '.join(spelled(words))}."
                )
            boxes.append((positions, region.box))
        sides = (options.height_px or backbone.resolution_px, options.width_px or backbone.resolution_px)
        scheduler = make_scheduler(backbone, options.scheduler)
        scheduler.set_timesteps(options.steps)
        return cls(
            boxes=boxes,
            tokens=backbone.token_ids([prompt]).shape[1],
            size=(sides[0] // backbone.latent_scale, sides[1] // backbone.latent_scale),
            softness=region_options.softness,
            steps=len(scheduler.timesteps),
            held_steps=round(region_options.share * len(scheduler.timesteps)),
            is_guided=is_guided(backbone, options),
        )

    def step_done(self) -> None:
        """Count a denoising step; the next batch begins anew."""
        self._done = (self._done + 1) % self.steps

    def __call__(
        self,
        layer: str,
        query: Float[Tensor, "n heads positions width"],
        key: Float[Tensor, "n heads tokens width"],
        value: Float[Tensor, "n heads tokens width"],
    ) -> Float[Tensor, "n heads positions width"]:
        """Return the attention of one layer."""
        if self._done >= self.held_steps:
            return attention(query, key, value)
        first = len(query) // 2 if self.is_guided else 0
        scores = self._added_scores(query.shape[2]).to(query)
        inside = attention(query[first:], key[first:], value[first:], attn_mask=scores)
        return torch.cat([attention(query[:first], key[:first], value[:first]), inside])

    def _added_scores(self, positions: int) -> Float[Tensor, "positions tokens"]:
        if positions not in self._scores:
            height, width = layer_size(positions, self.size)
            scores = torch.zeros(height, width, self.tokens)
            for words, box in self.boxes:
                scores[:, :, list(words)] += box_weights(box, (height, width), softness=self.softness).log()[..., None]
            self._scores[positions] = scores.flatten(0, 1)
        return self._scores[positions]


def box_weights(
    box: tuple[float, float, float, float], size: tuple[int, int], *, softness: float
) -> Float[Tensor, "height width"]:
    """Return the weight of each position of a layer: 1 inside a rectangle, `LEAST_WEIGHT` outside, soft at its edges.

    An edge of the picture is no edge of the rectangle.

    Args:
        box: Left, top, right and bottom, as shares of the picture's sides.
        size: Height and width of the layer.
        softness: Width of the edges, as a share of the picture's sides.
    """
    left, top, right, bottom = box
    down, across = (_inside(low, high, count, softness) for low, high, count in
                    ((top, bottom, size[0]), (left, right, size[1])))  # fmt: skip
    return (down[:, None] * across[None, :]).clamp(min=LEAST_WEIGHT)


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
            with computed(backbone.cross_attentions(), attend):  # until the next picture, not while the caller has it
                drawn = next(samples, None)
            if drawn is None:
                break
            yield drawn


# --- reading ----------------------------------------------------------------------------------------------------------

_FORM = 'Write lines such as: "<bear> teddy bear": [0, 0, 0.5, 1]'


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
