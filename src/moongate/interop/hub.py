"""The model card of a folder of files, and the upload of the folder to the Hugging Face hub."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from moongate.concept import Concept
from moongate.data import photo_of
from moongate.errors import PublishError, first_line
from moongate.interop.formats.contract import Format
from moongate.interop.tokens import ENCODERS, file_stems

__all__ = ["CARD", "card_prompts", "check_login", "model_card", "publish"]

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2212.04488"
POOLED = "pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id  # SDXL's own is outdated"
"""Without it, plain diffusers takes the pooled text of SDXL at the new token, which has the highest id, instead of at
the end of the caption. Setting it in `text_encoder_2.config` has no effect, because it is copied from there earlier."""
PLACES = ("", " on the beach", " in the snow", " in a garden")
"""Where the sample pictures of a card show a subject."""


def card_prompts(concept: Concept, count: int) -> list[str]:
    """Return at most `count` prompts for sample pictures: every subject in one place, then in the next."""
    pairs = [(words, place) for place in PLACES for words in _words(concept)]
    return [f"{photo_of(words)}{place}" for words, place in pairs[:count]]


def model_card(
    concept: Concept, form: Format, *, title: str, license: str = "other", pictures: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the model card of a folder: what it holds, for which base, how it is used, under which license.

    Args:
        concept: The concept that the folder holds.
        form: The format of the folder.
        title: The heading.
        license: An identifier of the hub, such as `cc0-1.0`.
        pictures: Pairs of a prompt and the name of its picture in the folder.
    """
    repository = concept.base if re.fullmatch(r"[\w.-]+/[\w.-]+", concept.base) else ""
    base = PureWindowsPath(concept.base).name or "not stated"  # never a path of the author's machine, whatever it is
    prompts = list(dict.fromkeys(prompt for subject in concept.subjects for prompt in subject.prompts))
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=repository or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=license,
        tags=["text-to-image", "custom-diffusion", "moongate", *(["lora"] if form.name in ("lora", "kohya") else [])],
        instance_prompt=next(iter(prompts or card_prompts(concept, 1)), None),
    )
    lines = ["---", data.to_yaml(), "---", "", f"# {_text(title)}", ""]
    if pictures:
        lines += [*(f"![{_text(prompt)}]({name})" for prompt, name in pictures), ""]
    lines += [
        f"A concept of [Custom Diffusion]({PAPER}), made with Moongate. Format: {form.title}.",
        "",
        f"- Base: {f'[{repository}](https://huggingface.co/{repository})' if repository else _text(base)}",
        f"- Trigger words: {_code(_words(concept)) or 'none of its own'}",
        f"- Tokens: {_code(concept.tokens) or 'none'}",
        f"- Changed weights: {len(concept.deltas)}",
        f"- License: {_text(license)}; the license of the base also applies to what is made with it.",
    ]
    if prompts:
        lines += ["", "## Training prompts", "", *(f"- {_code([prompt])}" for prompt in prompts)]
    lines += ["", "## Use", "", *_usage(concept, form, repository or "BASE")]
    return "\n".join(lines) + "\n"


def check_login(repo: str) -> None:
    """Check that the folder can be uploaded, before any work is done.

    Args:
        repo: The repository, as OWNER/NAME.

    Raises:
        PublishError: The hub cannot be reached, nobody is logged in, or `repo` is not a valid name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        HfApi().whoami()
    except _hub_errors() as error:
        raise _refused(repo, error) from error


def publish(folder: Path, repo: str) -> str:
    """Upload a folder to the hub and return the address of its repository.

    Args:
        folder: The folder.
        repo: The repository, as OWNER/NAME; it is created when it does not exist.

    Raises:
        PublishError: The hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = api.create_repo(repo, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Add a concept made with Moongate"
        )
    except _hub_errors() as error:
        raise _refused(repo, error) from error
    return str(repository)


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises for a wrong name, a refusal, and a network that is down."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # its HTTP library depends on the version
        HFValidationError,
        HTTPError,
    )

    return HFValidationError, HTTPError, OSError


def _refused(repo: str, error: Exception) -> PublishError:
    return PublishError(
        f"Nothing was uploaded to {repo!r}: {first_line(error)} The hub must be reachable and you must be logged in "
        "(`hf auth login`); the name is OWNER/NAME. Without --push the folder is written nevertheless, so that you can "
        "upload it by hand."
    )


def _words(concept: Concept) -> list[str]:
    """Return the words that each subject is called by, or the tokens when the file names no subjects."""
    return [subject.words for subject in concept.subjects if subject.words] or list(concept.tokens)


def _code(words: Iterable[str]) -> str:
    """Return words as Markdown shows code: on one line, between more backticks than are in the words."""
    spans = []
    for word in words:
        line = _on_one_line(word)
        fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
        spans.append(f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}")
    return ", ".join(spans)


def _text(words: str) -> str:
    """Return words as Markdown text on one line, in which no character has a meaning."""
    return re.sub(r"([\\`*_\[\]<>#!|~])", r"\\\1", _on_one_line(words))


def _on_one_line(words: str) -> str:
    """Return words with spaces in place of line ends and other characters that are not printed."""
    return "".join(character if character.isprintable() else " " for character in words)


def _usage(concept: Concept, form: Format, base: str) -> list[str]:
    """Return Markdown that shows how to draw with the concept, in diffusers and with Moongate."""
    prompt = _on_one_line((card_prompts(concept, 1) or ["a prompt"])[0])
    command = shlex.join(["moongate", "generate", prompt, "--concept", "FOLDER", "--model", base])
    console = ["```console", command, "```"]
    if not form.usage:
        return console
    imports = ["from diffusers import DiffusionPipeline"]
    lines = ['folder = "FOLDER"', f'pipeline = DiffusionPipeline.from_pretrained("{base}")', form.usage]
    for token, stem in file_stems(concept.tokens).items():
        file = f"{stem}.safetensors"
        if len(concept.token_widths) < 2:
            lines.append(f'pipeline.load_textual_inversion(folder, weight_name="{file}")')
            continue
        imports = [*imports[:1], "from safetensors.torch import load_file"]
        if POOLED not in lines:
            lines.append(POOLED)
        lines.append(f'rows = load_file(f"{{folder}}/{file}")')
        for key, end in zip(ENCODERS, ("", "_2"), strict=True):
            parts = f"text_encoder=pipeline.text_encoder{end}, tokenizer=pipeline.tokenizer{end}"
            lines.append(f'pipeline.load_textual_inversion(rows["{key}"], token={json.dumps(token)}, {parts})')
    lines.append(f'pipeline({json.dumps(prompt)}).images[0].save("picture.png")')
    return ["```python", *imports, "", *lines, "```", "", "or", "", *console]
