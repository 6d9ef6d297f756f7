"""Load a model of transformers completely, or say why not."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moongate.backbone.devices import available_device
from moongate.backbone.hub import must_stay_offline
from moongate.backbone.loading import LOADING_ERRORS, quiet
from moongate.errors import BackboneError, first_line, listed

__all__ = ["fetches", "pretrained"]

KNOWN = "a folder in transformers' layout, or a model id of the hub such as openai/clip-vit-base-patch32"


def fetches(source: str | Path, *, downloads: bool) -> bool:
    """Return whether files of a model may be fetched: not while the hub is out of reach.

    Raises:
        BackboneError: The model may be fetched, but is nothing that is here or on the hub.
    """
    if not downloads or Path(source).exists():
        return False
    return not must_stay_offline(str(source), "config.json", known=KNOWN)


def pretrained(
    kind: Any, source: str | Path, *, device: str = "cpu", unused: Sequence[str] = (), downloads: bool = True
) -> Any:
    """Load a model in float32, in evaluation mode and without gradients.

    Transformers would fill weights that are missing with random numbers; here they are an error.

    Args:
        kind: A model class of transformers.
        source: A folder in transformers' layout, or a model id of the hub.
        device: Where the model computes.
        unused: Beginnings of the names of weights that are not needed and may be missing.
        downloads: Whether a model that is not on this machine is fetched from the hub.

    Raises:
        BackboneError: The model cannot be found or read, or lacks weights.
        OptionError: There is no such device.
    """
    device = str(available_device(device))
    may_fetch = fetches(source, downloads=downloads)
    try:
        with quiet():
            model, report = kind.from_pretrained(
                source,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                local_files_only=not may_fetch,
            )
    except LOADING_ERRORS as error:
        if not (downloads or Path(source).exists()):
            raise BackboneError(
                f"The model {str(source)!r} is not on this machine. A collection names it, and Moongate downloads only "
                f"what you name yourself. If you trust its author, get it with: hf download {shlex.quote(str(source))}"
            ) from error
        raise BackboneError(
            f"The model {str(source)!r} cannot be loaded: {first_line(error)} Give a folder in transformers' layout, "
            "or a model id while the hub can be reached. Pocket's own CLIP (pocket-clip) comes with Moongate."
        ) from error
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if needed := sorted(key for key in absent if not key.startswith(tuple(unused))):
        raise BackboneError(
            f"The model {str(source)!r} lacks weights of a {kind.__name__}, or has them in other shapes: "
            f"{listed(needed, at_most=3)}. Give a complete model of this kind."
        )
    return model.to(device).eval().requires_grad_(False)
