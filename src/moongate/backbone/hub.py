"""Which model a name means: a folder, a file, or an id of the Hugging Face hub, which is asked once, without retries.

Nothing here imports diffusers or transformers, so that a wrong name is answered at once, nor the hub's client before it
is needed.
"""

import re
import shlex
from pathlib import Path

from moongate.errors import BackboneError, first_line
from moongate.files import exists, is_file
from moongate.summary import is_concept, read_summary
from moongate.tensor_bytes import read_header

__all__ = [
    "AUTOENCODER",
    "INDEX",
    "MODEL_ID",
    "SINGLE_FILES",
    "is_model",
    "located",
    "must_stay_offline",
    "not_here",
    "snapshot",
]

INDEX = "model_index.json"
"""The file that each model in diffusers' layout has."""
SINGLE_FILES = (".safetensors", ".ckpt")
"""Endings of a model in one file."""
AUTOENCODER = "first_stage_model."
"""How the names of the autoencoder's weights begin in a single file, which no concept has."""
MODEL_ID = re.compile(r"(?!.*(?:--|\.\.|\.git$))\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)
"""What the hub's client takes for a model id; it raises an error of its own for other names, such as `../model`."""
KNOWN = (
    f"pocket, a folder in diffusers' layout (with {INDEX}), a single file (.safetensors, .ckpt), or a model id of the "
    "hub such as stable-diffusion-v1-5/stable-diffusion-v1-5"
)
"""What names a model."""
TIMEOUT_S = 10
"""Longest wait for the hub's answer."""


def located(model: str, *, downloads: bool) -> tuple[str, bool]:
    """Return a model's folder, file or id, and whether something may be fetched: not while the hub is out of reach.

    Args:
        model: A folder, a file or a model id of the hub.
        downloads: Whether what is missing on this machine may be fetched.

    Raises:
        BackboneError: `model` is a concept file, or nothing that is here or on the hub.
    """
    path = Path(model)
    if is_file(path) and is_concept(path):
        summary = read_summary(path)
        prompts = [prompt for subject in summary.facts["subjects"] for prompt in subject["prompts"]] if summary else []
        command = shlex.join(["moongate", "generate", *(prompts[:1] or ["a prompt"]), "--concept", model])
        raise BackboneError(
            f"{model} is a concept, not a model; draw with it: {command}. To train on, give --start-from {model}; "
            "--model names the model that it was made for."
        )
    if not exists(path):
        if model.endswith(SINGLE_FILES):
            raise BackboneError(f"There is no file {model}. Check the path.")
        if downloads:
            downloads = not must_stay_offline(model, INDEX)
        elif not MODEL_ID.fullmatch(model):
            raise not_here(model)
    return model, downloads


def not_here(model: str) -> BackboneError:
    """Return the error for a model that a file names and that is not on this machine."""
    return BackboneError(
        f"The model {model!r} is not on this machine. A file names it, and Moongate downloads only what you name "
        f"yourself. If you trust its author, add --model {shlex.quote(model)}."
    )


def is_model(path: Path) -> bool:
    """Return whether a folder or a single safetensors file is a whole model, by its index or by its autoencoder."""
    return is_file(path / INDEX) or (is_file(path) and any(name.startswith(AUTOENCODER) for name in read_header(path)))


def snapshot(model: str) -> Path | None:
    """Return the folder in the hub's cache that has the index of a model id; None if there is none."""
    if not MODEL_ID.fullmatch(model):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, INDEX)
    return Path(found).parent if isinstance(found, str) else None


def must_stay_offline(model: str, index: str, *, known: str = KNOWN) -> bool:
    """Ask the hub once whether it has a model, and return whether the copy on this machine must do.

    The libraries retry for half a minute for each of a model's files when the hub cannot be reached.

    Args:
        model: What should be a model id.
        index: The file that each model has; a model whose index is in the cache was downloaded before.
        known: What may be given, for the message that `model` is nothing of it.

    Raises:
        BackboneError: `model` is not a model id, the hub has no such model or does not let the user have it, or the hub
            cannot be reached and there is no copy.
    """
    if not MODEL_ID.fullmatch(model):
        raise BackboneError(f"There is no model {model!r} here. Give {known}.")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # its HTTP library depends on the version
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        HfApi().model_info(model, timeout=TIMEOUT_S)
        return False
    except GatedRepoError as error:
        raise BackboneError(
            f"The hub gives {model!r} only to users who accepted its license. Accept it on the model's page, and log "
            "in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise BackboneError(
            f"The hub has no model {model!r}, and there is no such folder here. Check the spelling; for a private "
            "model log in with `hf auth login`."
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(try_to_load_from_cache(model, index), str):
            return True
        raise BackboneError(
            f"There is no folder {model!r} here, no copy of such a model on this machine, and the hub cannot be "
            f"reached: {first_line(error)} Check the spelling and the network, or give a folder or a file."
        ) from error
