"""A model card for a folder of files, and the folder's way to the Hugging Face hub."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from moongate.concept import Concept
from moongate.data import photo_of
from moongate.errors import PublishError, first_line
from moongate.interop.format import Format
from moongate.interop.tokens import ENCODERS, file_stem

__all__ = ["CARD", "card_prompts", "check_login", "model_card", "publish"]

CARD = "README.md"
CODE = "https://arxiv.org/abs/2212.04488"
PLACES = ("", " on the beach", " in the snow", " in a garden")
"""Where the sample pictures of a card show a thing."""


def card_prompts(concept: Concept, count: int) -> list[str]:
    """Return prompts for `count` sample pictures: each thing in turn, in one place after the other."""
    words = [subject.words for subject in concept.subjects if subject.words] or list(concept.tokens)
    pairs = [(each, place) for place in PLACES for each in words]
    return [f"{photo_of(each)}{place}" for each, place in pairs[:count]]


def model_card(
    concept: Concept, form: Format, *, title: str, license: str = "other", pictures: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the README of a folder: what it holds, for which base, how it is used, under which license.

    `pictures` are pairs of a prompt and the name of its picture in the folder.
    """
    base = concept.base if re.fullmatch(r"[\w.-]+/[\w.-]+", concept.base) else ""
    named = Path(concept.base).name or "not stated"  # never a path of the author's machine
    words = [subject.words for subject in concept.subjects if subject.words] or list(concept.tokens)
    prompts = list(dict.fromkeys(prompt for subject in concept.subjects for prompt in subject.prompts))
    lines = _front_matter(concept, form, base=base, license=license, prompts=prompts or card_prompts(concept, 1))
    lines += [f"# {title}", ""]
    lines += [f"![{prompt}]({name})" for prompt, name in pictures] + [""] * bool(pictures)
    lines += [
        f"A concept of [Custom Diffusion]({CODE}), kept by Moongate as: {form.title}.",
        "",
        f"- Base: {f'[{base}](https://huggingface.co/{base})' if base else named}",
        f"- Words that call it up: {', '.join(f'`{each}`' for each in words) or 'none of its own'}",
        f"- Tokens: {', '.join(f'`{token}`' for token in concept.tokens) or 'none'}",
        f"- Changed weights: {len(concept.deltas)}",
        f"- License: {license}; the license of the base also applies to what is made with it.",
    ]
    if prompts:
        lines += ["", "## Prompts it was taught with", "", *(f"- `{prompt}`" for prompt in prompts)]
    lines += ["", "## Use", "", *_usage(concept, form, base or "BASE")]
    return "\n".join(lines) + "\n"


def check_login(repo: str) -> None:
    """Raise PublishError unless the hub can be reached, somebody is logged in, and `repo` is a possible name."""
    try:
        validate_repo_id(repo)
        HfApi().whoami()
    except (HFValidationError, HTTPError, OSError) as error:
        raise _refused(repo, error) from error


def publish(folder: Path, repo: str) -> str:
    """Upload a folder into the repository `repo` of the hub, made where it is missing, and return its address."""
    api = HfApi()
    try:
        made = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Add a concept made with Moongate")
    except (HFValidationError, HTTPError, OSError) as error:
        raise _refused(repo, error) from error
    return str(made)


def _refused(repo: str, error: Exception) -> PublishError:
    return PublishError(
        f"Nothing was uploaded to {repo!r}: {first_line(error)} The hub must be reachable and you logged in "
        "(`hf auth login`); the name is OWNER/NAME. Without --push the folder is written all the same, to "
        "upload by hand."
    )


def _front_matter(concept: Concept, form: Format, *, base: str, license: str, prompts: Sequence[str]) -> list[str]:
    tags = ["text-to-image", "custom-diffusion", "moongate", *(["lora"] if form.name in ("lora", "kohya") else [])]
    lines = ["---", *([f"base_model: {base}"] if base else []), "library_name: diffusers"]
    lines += ["pipeline_tag: text-to-image", f"license: {license}"]
    lines += [f"instance_prompt: {json.dumps(prompt, ensure_ascii=False)}" for prompt in prompts[:1]]
    return [*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _usage(concept: Concept, form: Format, base: str) -> list[str]:
    prompt = (card_prompts(concept, 1) or ["a prompt"])[0]
    ours = ["```console", f'moongate generate "{prompt}" --concept FOLDER --model {base}', "```"]
    if not form.usage:
        return ours
    imports = ["from diffusers import DiffusionPipeline"]
    lines = ['folder = "FOLDER"', f'pipeline = DiffusionPipeline.from_pretrained("{base}")', form.usage]
    for token in concept.tokens:
        file = f"{file_stem(token)}.safetensors"
        if len(concept.token_widths) < 2:
            lines.append(f'pipeline.load_textual_inversion(folder, weight_name="{file}")')
            continue
        imports = [*imports[:1], "from safetensors.torch import load_file"]
        lines.append(f'rows = load_file(f"{{folder}}/{file}")')
        for key, end in zip(ENCODERS, ("", "_2"), strict=True):
            parts = f"text_encoder=pipeline.text_encoder{end}, tokenizer=pipeline.tokenizer{end}"
            lines.append(f'pipeline.load_textual_inversion(rows["{key}"], token="{token}", {parts})')
    lines.append(f'pipeline("{prompt}").images[0].save("picture.png")')
    return ["```python", *imports, "", *lines, "```", "", "or", "", *ours]
