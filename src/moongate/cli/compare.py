"""What `moongate generate --compare` does: a sheet of the same pictures without and with a concept."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from moongate.cli.terminal import progress_bar, say

if TYPE_CHECKING:
    from moongate.backbone import Backbone
    from moongate.concept import Concept
    from moongate.sampling import SampleOptions

__all__ = ["write_comparison"]


def write_comparison(
    backbone: "Backbone",
    concept: "Concept",
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    options: "SampleOptions",
    sheet: Path,
    console: Console,
) -> dict[str, Any]:
    """Draw the prompts without the concept and at several strengths, and write one labeled sheet.

    Args:
        backbone: The base model, with no concept applied.
        concept: The concept, or several merged ones.
        prompts: What to draw.
        seeds: The seeds of the pictures of each prompt.
        options: How pictures are drawn.
        sheet: The PNG file to write.
        console: Where progress is shown.

    Returns:
        What `--json` prints.
    """
    from moongate.evaluation import STRENGTHS, compare, comparison_sheet, ways_of
    from moongate.files import write_atomically
    from moongate.pages import png_bytes

    with progress_bar(console) as progress:
        task = progress.add_task("Drawing", total=None, note="")
        drawn = compare(
            backbone,
            prompts,
            ways_of(concept),
            seeds=seeds,
            options=options,
            on_picture=lambda done, total: progress.update(task, completed=done, total=total),
        )
    words = ", ".join(subject.words for subject in concept.subjects)
    write_atomically(sheet, png_bytes(comparison_sheet(drawn, heading=f"{words} on {backbone.name}")))
    say(console, f"Wrote {sheet}.")
    return {"sheet": str(sheet), "prompts": list(prompts), "seeds": list(seeds), "strengths": [0.0, *STRENGTHS]}
