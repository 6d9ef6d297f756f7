"""Which model a name means: a folder, a file, or an id of the Hugging Face hub, which is asked once, without retries.

Nothing here imports diffusers or transformers, so that a wrong name is answered at once.
"""

import re
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # its HTTP library depends on the version
    GatedRepoError,
    HTTPError,
    RepositoryNotFoundError,
)

from moongate.errors import BackboneError, first_line
from moongate.summary import is_concept

__all__ = ["INDEX", "SINGLE_FILES", "located", "must_stay_offline"]

INDEX = "model_index.json"
"""The file that each model in diffusers' layout has."""
SINGLE_FILES = (".safetensors", ".ckpt")
"""Endings of a model in one file."""
MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+")
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
    if path.is_file() and is_concept(path):
        raise BackboneError(
            f"{model} is a concept, not a model. Give it with --concept to draw, with --start-from to train on, or as "
            "the file of other commands; --model names the model that it was made for."
        )
    if downloads and not path.exists() and not model.endswith(SINGLE_FILES):
        downloads = not must_stay_offline(model, INDEX)
    return model, downloads


def must_stay_offline(model: str, index: str) -> bool:
    """Ask the hub once whether it has a model, and return whether the copy on this machine must do.

    The libraries retry for half a minute for each of a model's files when the hub cannot be reached.

    Args:
        model: What should be a model id.
        index: The file that each model has; a model whose index is in the cache was downloaded before.

    Raises:
        BackboneError: `model` is no model id, the hub has no such model or does not let the user have it, or the hub
            cannot be reached and there is no copy.
    """
    if not MODEL_ID.fullmatch(model):
        raise BackboneError(
            f"There is no model {model!r} here. Give pocket, a folder in diffusers' layout (with {index}), a single "
            "file (.safetensors, .ckpt), or a model id of the hub such as stable-diffusion-v1-5/stable-diffusion-v1-5."
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
