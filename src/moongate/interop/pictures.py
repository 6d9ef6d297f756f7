"""What a drawn picture's PNG file says of itself, for our own reader and for other programs.

A1111 and the programs that follow it read `parameters`: the prompt, the negative prompt behind "Negative prompt: ", and
a line of settings. ComfyUI takes the keys `prompt` and `workflow` for a graph of its nodes, so neither is used.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moongate.sampling import Sample, SampleOptions

__all__ = ["picture_texts"]

SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpm++": "DPM++ 2M",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "unipc": "UniPC",
}
"""A1111's names of our schedulers."""


def picture_texts(
    drawn: Sample,
    *,
    model: str,
    concepts: Sequence[tuple[str, float]],
    options: SampleOptions,
    facts: Mapping[str, Any],
) -> dict[str, str]:
    """Return the texts of a picture's PNG file by keyword: `parameters` as A1111 writes them, and `moongate`, JSON.

    Args:
        drawn: The picture.
        model: Name of the base model.
        concepts: The name of each concept and its strength; two may have one name.
        options: How the picture was drawn.
        facts: What `moongate` holds in addition to prompt and seed.
    """
    height, width = drawn.image.shape[:2]
    settings = {
        "Steps": options.steps,
        "Sampler": SAMPLERS.get(options.scheduler, options.scheduler),
        "CFG scale": options.guidance,
        "Seed": drawn.seed,
        "Size": f"{width}x{height}",
        "Model": model,
        "Concepts": ", ".join(f"{name}:{strength:g}" for name, strength in concepts),
    }
    negative = [f"Negative prompt: {_on_one_line(options.negative_prompt)}"] if options.negative_prompt else []
    line = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value not in (None, ""))
    return {
        "parameters": "\n".join([_on_one_line(drawn.prompt), *negative, line]),
        "moongate": json.dumps({"prompt": drawn.prompt, "seed": drawn.seed, **facts}, ensure_ascii=False),
    }


def _on_one_line(prompt: str) -> str:
    """Return a prompt without its line breaks: a further line may look like the negative prompt."""
    return " ".join(prompt.splitlines())


def _quoted(value: str) -> str:
    """Return a value as A1111 writes it: in quotation marks if it has a character that ends values."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
