"""Edit pictures by their words: prompt-to-prompt, of drawn pictures and of photos (Hertz et al. 2022; paper, Fig. 10).

A source prompt and a target prompt are drawn side by side. The target takes attention from the source, so that what the
prompts have in common stays (`editing.control`). For a photo, the source branch follows the path of latents that leads
to it (`editing.photos`). A concept acts only on the target, unless the source names one of its tokens.
`editing.regions` keeps the subjects of a composed picture apart.

The package knows nothing of training or of files.
"""

from collections.abc import Callable, Iterator, Sequence

from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.editing.drawing import all_edited, applied
from moongate.editing.plan import Edit, Edited, EditOptions, planned
from moongate.errors import TokenError, shortened
from moongate.sampling import SampleOptions, check_prompt, check_seeds, timed_scheduler

__all__ = ["Edit", "EditOptions", "Edited", "edit"]


def edit(
    backbone: Backbone,
    edits: Sequence[Edit],
    *,
    concept: Concept | None = None,
    options: EditOptions | None = None,
    sampling: SampleOptions | None = None,
    on_step: Callable[[], None] | None = None,
) -> Iterator[Edited]:
    """Edit pictures: each is drawn twice at once, and the second drawing takes attention from the first.

    In addition to what drawing takes, each picture of a batch needs memory for the queries and keys of all attention
    layers in one step, whatever the number of steps; attention maps are never formed. `benchmarks/editing.py` measures
    it.

    Args:
        backbone: The model, with no concept applied.
        edits: The edits. Consecutive ones of one size are made in one batch of at most `sampling.batch`.
        concept: Acts on the target, and on the source as well if a source prompt names one of its tokens.
        options: How much of the source is kept.
        sampling: How pictures are drawn, by any scheduler. DDIM by default, or DDPM for edit-friendly DDPM. Photos have
            their own size.
        on_step: Called after each denoising step of each batch.

    Returns:
        An iterator over the edited pictures in the order of the edits. What can be checked is checked before this
        function returns.

    Raises:
        TokenError: A prompt, also the negative one, has a `<token>` that neither the backbone nor the concept provides.
            A source on which the concept does not act reads the negative prompt too, without the concept's tokens.
        OptionError: Two prompts have no word in common, a word of `reweight` or `blend` is in no prompt, a mask does
            not fit its picture, or a seed, a side or another option is out of range.
        BaseMismatchError: The concept is for another base.
    """
    options = options or EditOptions()
    sampling = (sampling or SampleOptions(scheduler=options.scheduler)).for_model(backbone)
    timed_scheduler(backbone, sampling.scheduler, sampling.steps)
    check_seeds(item.seed for item in edits)
    with applied(concept, backbone):
        check_prompt(backbone, sampling.negative_prompt, kind="negative prompt")
        plans = [planned(backbone, item, sampling, concept) for item in edits]
    if not all(plan.source_has_concept for plan in plans):
        _check_negative_of_sources(backbone, sampling.negative_prompt)
    return all_edited(backbone, plans, concept, options, sampling, on_step)


def _check_negative_of_sources(backbone: Backbone, negative_prompt: str) -> None:
    """Check that a source that is drawn by the base alone can read the negative prompt."""
    if unknown := backbone.unknown_tokens(negative_prompt):
        raise TokenError(
            f"The negative prompt {shortened(negative_prompt)!r} uses {unknown[0]!r}, but a source prompt names no "
            "token of the concept and is drawn by the base, which does not know it. Name a token in each source "
            "prompt, or leave it out of the negative prompt."
        )
