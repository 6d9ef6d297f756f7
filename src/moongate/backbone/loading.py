"""Find a model: a folder in diffusers' layout, a model id of the hub, or a single file in the original layout.

It knows where models are kept and which kinds can be used; nothing of what they compute.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    fetch_diffusers_config,
    load_single_file_checkpoint,
)
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..errors import BackboneError

__all__ = ["load_pipeline"]

SINGLE_FILES = (".safetensors", ".ckpt")
INDEX = "model_index.json"
WITHOUT: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "StableDiffusionPipeline": (
        StableDiffusionPipeline,
        {**WITHOUT, "safety_checker": None, "requires_safety_checker": False},
    ),
    "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, {**WITHOUT, "add_watermarker": False}),
}
"""The kinds of pipelines that can be used, and what of each is left out."""
CANNOT = (OSError, ValueError, TypeError, KeyError, RuntimeError, SingleFileComponentError)
"""What the libraries raise for a model that is missing, incomplete or of another kind."""


def load_pipeline(
    model: str, *, config: Path | None, device: str | torch.device, dtype: torch.dtype
) -> tuple[Any, Path]:
    """Return the pipeline and the folder that may hold further settings of it.

    A single file holds weights alone; the rest comes from `config` (a folder in diffusers' layout, with or without
    weights), from a folder beside the file and named like it, or from the hub. Pickles are read as weights only.
    Raises BackboneError when something is missing or cannot be used.
    """
    is_file = model.endswith(SINGLE_FILES)
    if config is not None and not is_file:
        raise BackboneError(
            f"A configuration ({config}) was given for {model!r}, which is no single file and brings its own. "
            "Leave one of them out."
        )
    with _quiet():
        if is_file:
            source = _configuration(Path(model), config)
            kind, options = _kind(source, model)
            load, options = kind.from_single_file, {**options, "config": source}
        else:
            source = model
            kind, options = _kind(source, model)
            load = kind.from_pretrained
        try:
            pipeline = load(model, dtype=dtype, **options).to(device)
        except NotImplementedError as error:  # a weight without numbers was to be copied
            raise BackboneError(
                f"The model {model!r} lacks weights that the configuration in {source} lists. It is incomplete, or "
                "the configuration is that of another model."
            ) from error
        except CANNOT as error:
            raise BackboneError(f"The model {model!r} cannot be loaded: {_first_line(error)}") from error
    _check_parts(pipeline, model)
    return pipeline, Path(source)


def _configuration(file: Path, config: Path | None) -> str:
    """Return the folder or model id that says what a single file's weights are the weights of."""
    if not file.is_file():
        raise BackboneError(f"There is no file {file}. Check the path.")
    beside = file.with_suffix("")
    for folder in (config, beside):
        if folder and (folder / INDEX).is_file():
            return str(folder)
    if config:
        raise BackboneError(f"{config} is no folder in diffusers' layout: it has no {INDEX}. Check the path.")
    try:
        weights = load_single_file_checkpoint(str(file))
    except CANNOT as error:
        pickled = file.suffix != ".safetensors"
        reason = " or is a pickle that holds more than weights, which might run code" if pickled else ""
        raise BackboneError(
            f"{file} is damaged{reason}. Copy or download it again, in safetensors where there is a choice."
        ) from error
    return fetch_diffusers_config(weights)["pretrained_model_name_or_path"]


def _kind(source: str, model: str) -> tuple[Any, dict[str, Any]]:
    """Return the class of the pipeline and what it is loaded without."""
    try:
        name = DiffusionPipeline.load_config(source)["_class_name"]
    except CANNOT as error:
        if source != model:
            raise BackboneError(
                f"{model} holds weights alone; its configuration is that of {source!r}, which is not on this machine "
                f"and cannot be had: {_first_line(error)} Give a folder with it (--config FOLDER), or put that "
                f"folder beside the file as {Path(model).with_suffix('')}."
            ) from error
        raise BackboneError(
            f"The model {model!r} cannot be loaded: {_first_line(error)} Give 'pocket', a folder in diffusers' layout "
            f"(with {INDEX}), a single file ({' or '.join(SINGLE_FILES)}), or a model id while the hub can be reached."
        ) from error
    if name not in FAMILIES:
        raise BackboneError(
            f"The model {model!r} is a {name}, which Moongate cannot use. It takes SD 1.x, SD 2.x and SDXL "
            f"({' and '.join(FAMILIES)})."
        )
    return FAMILIES[name]


def _check_parts(pipeline: Any, model: str) -> None:
    """Refuse what looks like a base and is not one."""
    unet, missing = pipeline.unet.config, [name for name, part in pipeline.components.items() if part is None]
    missing = sorted(set(missing) - {*WITHOUT, "safety_checker"})
    if missing:
        raise BackboneError(
            f"The model {model!r} has no {missing[0]}, as a refiner has none. Give the base model that it refines."
        )
    if unet.in_channels != unet.out_channels:
        raise BackboneError(
            f"The denoiser of {model!r} takes {unet.in_channels} channels and returns {unet.out_channels}, as one for "
            "inpainting or upscaling does. Give the base model."
        )
    if getattr(pipeline.vae.config, "latents_mean", None):
        raise BackboneError(
            f"The model {model!r} shifts its latents and was trained on another kind of noise than SDXL, which "
            "Moongate does not know. Give a model of SDXL's own kind."
        )
    second = getattr(pipeline, "tokenizer_2", None)
    if second and second.get_vocab() != pipeline.tokenizer.get_vocab():
        raise BackboneError(f"The two tokenizers of {model!r} have different vocabularies, as no SDXL model has.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep remarks and progress bars of the libraries from the terminal while a model is read."""
    libraries = (diffusers_logging, transformers_logging)
    found = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")  # diffusers calls it in its older ways
            yield
    finally:
        for library, (level, bars) in zip(libraries, found, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else line + "."
