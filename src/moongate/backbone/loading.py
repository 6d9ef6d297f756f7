"""Load a model: a folder in diffusers' layout, a model id of the hub, or a single file in the original layout.

Single files go through diffusers' own reader, with a configuration that is looked for in a fixed order: the one given,
a folder of the file's name, the hub. Configurations of our own would be right for most files and silently wrong for the
others. The module knows which kinds of models can be used, and nothing of what they compute.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from moongate.backbone.hub import AUTOENCODER, INDEX, SINGLE_FILES, must_stay_offline, not_here
from moongate.backbone.model_folder import FAMILIES, WITHOUT, check_classes, check_folder
from moongate.errors import BackboneError, first_line

__all__ = ["LOADING_ERRORS", "denoiser_shapes", "load_pipeline", "quiet"]

LOADING_ERRORS: tuple[type[Exception], ...] = (Exception,)
"""What the libraries raise for a model that is missing, damaged or of another kind: their own errors, and tokenizers
raises `Exception` itself."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a denoiser may return: the noise, the velocity or the clean latents."""
FURTHER_INPUTS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type")
"""Settings of denoisers that need class labels, or change what cross-attention reads before it does."""


def load_pipeline(
    model: str, *, config: Path | None, device: str | torch.device, dtype: torch.dtype, downloads: bool = True
) -> tuple[Any, Path]:
    """Load a pipeline. Pickles are read as weights only and refused otherwise.

    Args:
        model: A folder, a model id of the hub, or a single file.
        config: For a single file: a folder in diffusers' layout with its configuration.
        device: Where the model computes.
        dtype: Precision of the weights.
        downloads: Whether what is missing on this machine is fetched from the hub.

    Returns:
        The pipeline, and the folder that may contain further settings of the model.

    Raises:
        BackboneError: The model is missing, incomplete or of another kind.
    """
    is_file = model.endswith(SINGLE_FILES)
    if config is not None and not is_file:
        raise BackboneError(
            f"A configuration ({config}) was given for {model!r}, which is not a single file and has its own. "
            "Leave the configuration out."
        )
    with quiet():
        source = _configuration(Path(model), config) if is_file else model
        if is_file and downloads and not Path(source).exists():
            downloads = _can_fetch(source, model)
        if (Path(source) / INDEX).exists():
            check_folder(Path(source))
        kind, index = _kind(source, model, downloads)
        check_classes(index, model)
        how = {"dtype": dtype, "local_files_only": not downloads, **FAMILIES[kind.__name__]}
        try:
            if is_file:
                pipeline = kind.from_single_file(model, config=source, **how)
            else:
                how |= _variant(Path(model) / "unet") | _variant(Path(model) / "vae")
                how |= _text_encoders(model, index, dtype, downloads)
                pipeline = kind.from_pretrained(model, trust_remote_code=False, **how)
            _check_whole(pipeline, model, source)
            pipeline.to(device)
        except BackboneError:
            raise
        except LOADING_ERRORS as error:
            if is_file and isinstance(error, NotImplementedError):  # diffusers copied a weight without numbers
                raise _lacking(model, source) from error
            if not (downloads or is_file or Path(model).is_dir()):
                raise not_here(model) from error
            raise BackboneError(f"The model {model!r} cannot be loaded: {first_line(error)}") from error
    _check_parts(pipeline, model)
    _check_schedule(pipeline.scheduler, model)
    return pipeline, Path(source)


def denoiser_shapes(model: str, *, downloads: bool = True) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of all denoiser weights by name, from the configuration alone.

    Args:
        model: A folder or a model id of the hub.
        downloads: Whether a missing configuration is fetched from the hub.

    Returns:
        The shapes, or None for a single file, a folder that is no model, or a configuration that cannot be read:
        loading says what is wrong.

    Raises:
        BackboneError: The model folder may not be read (`backbone.model_folder`).
    """
    folder = Path(model)
    if model.endswith(SINGLE_FILES) or (folder.is_dir() and not (folder / INDEX).exists()):
        return None
    if folder.is_dir():
        check_folder(folder)
    try:
        with quiet(), torch.device("meta"):
            kind = diffusers.UNet2DConditionModel
            config = kind.load_config(model, subfolder="unet", local_files_only=not downloads)
            denoiser = kind.from_config(config)
    except LOADING_ERRORS:
        return None
    return {name: tuple(weight.shape) for name, weight in denoiser.named_parameters()}


def _configuration(file: Path, config: Path | None) -> str:
    """Return the folder or model id with the configuration of a single file."""
    namesake = file.with_suffix("")
    for folder in (config, namesake):
        if folder and (folder / INDEX).is_file():
            return str(folder)
    if config:
        raise BackboneError(f"{config} is not a folder in diffusers' layout: it has no {INDEX}. Check the path.")
    try:
        weights = load_single_file_checkpoint(str(file))
    except LOADING_ERRORS as error:
        pickled = file.suffix != ".safetensors"
        reason = " or is a pickle that contains more than weights, which might run code" if pickled else ""
        raise BackboneError(
            f"{file} is damaged{reason}. Copy or download it again, in safetensors where there is a choice."
        ) from error
    if not any(name.startswith(AUTOENCODER) for name in weights):
        raise BackboneError(
            f"{file} is not a whole model: it has no autoencoder. Give the folder of the model, or one file with all "
            "of its parts."
        )
    return fetch_diffusers_config(weights)["pretrained_model_name_or_path"]


def _can_fetch(source: str, model: str) -> bool:
    """Return whether the configuration of a single file may be fetched; a copy that is here does offline."""
    try:
        return not must_stay_offline(source, INDEX)
    except BackboneError as error:
        raise _without_configuration(model, source) from error


def _without_configuration(model: str, source: str, reason: str = ".") -> BackboneError:
    return BackboneError(
        f"{model} has weights only; its configuration is that of {source!r}, which is not on this machine and cannot "
        f"be downloaded{reason} Give a folder with it (--config FOLDER), or put that folder next to the file as "
        f"{Path(model).with_suffix('')}."
    )


def _kind(source: str, model: str, downloads: bool) -> tuple[Any, Mapping[str, Any]]:
    """Return the class of the pipeline and its index, which names the classes of its parts."""
    try:
        index = DiffusionPipeline.load_config(source, local_files_only=not downloads)
        name = str(index["_class_name"])
    except LOADING_ERRORS as error:
        if not downloads and source == model and not Path(source).exists():
            raise not_here(model) from error
        if source != model:
            raise _without_configuration(model, source, f": {first_line(error)}") from error
        raise BackboneError(
            f"The model {model!r} cannot be loaded: {first_line(error)} Give 'pocket', a folder in diffusers' layout "
            f"(with {INDEX}), a single file ({' or '.join(SINGLE_FILES)}), or a model id while the hub can be reached."
        ) from error
    if name not in FAMILIES:
        raise BackboneError(
            f"The model {model!r} is a {name}, which Moongate cannot use. It takes SD 1.x, SD 2.x and SDXL "
            f"({' and '.join(FAMILIES)})."
        )
    return getattr(diffusers, name), index


def _text_encoders(model: str, index: Mapping[str, Any], dtype: torch.dtype, downloads: bool) -> dict[str, Any]:
    """Load the text encoders of a folder or model id.

    Diffusers would accept an incomplete text encoder, with the random numbers that transformers fills in.
    """
    encoders = {}
    for part in ("text_encoder", "text_encoder_2"):
        library, name = index.get(part) or ("", "")
        if library == "transformers":
            load = getattr(transformers, name).from_pretrained
            how = {"dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
            how |= {"trust_remote_code": False, "local_files_only": not downloads, **_variant(Path(model) / part)}
            encoders[part], report = load(model, subfolder=part, **how)
            wrong = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
            if wrong:
                raise _lacking(model, model, [f"{part}.{key}" for key in sorted(wrong)])
    return encoders


def _variant(folder: Path) -> dict[str, str]:
    """Return the variant of a part that was copied only in half precision, as the argument that loads it."""
    names = [file.name for ending in ("safetensors", "bin") for file in folder.glob(f"*.{ending}")]
    return {"variant": "fp16"} if names and all(".fp16" in name for name in names) else {}


def _check_whole(pipeline: Any, model: str, source: str) -> None:
    """Refuse a model with weights that have no values; diffusers leaves them so when a file lacks them."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    named = [(f"{name}.{key}", weight) for name, part in parts.items() for key, weight in part.named_parameters()]
    if empty := [name for name, weight in named if weight.is_meta]:
        raise _lacking(model, source, empty)


def _lacking(model: str, source: str, names: Sequence[str] = ()) -> BackboneError:
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    which = f": {', '.join([*names[:3], *more])}" if names else ""
    return BackboneError(
        f"The model {model!r} lacks weights that the configuration in {source} lists, or has them in other "
        f"shapes{which}. It is incomplete, or the configuration is that of another model."
    )


def _check_parts(pipeline: Any, model: str) -> None:
    """Refuse models that look like a base and are none: refiners, inpainting models, other latents."""
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
    needs = [key for key in FURTHER_INPUTS if unet.get(key) is not None]
    if needs or unet.addition_embed_type not in (None, "text_time"):
        raise BackboneError(
            f"The denoiser of {model!r} takes other inputs than those of Stable Diffusion and SDXL "
            f"({(needs or ['addition_embed_type'])[0]}). Give a model without them."
        )
    sides = unet.sample_size if isinstance(unet.sample_size, list | tuple) else (unet.sample_size,)
    if len(set(sides)) != 1 or not (isinstance(sides[0], int) and sides[0] > 0):
        raise BackboneError(
            f"The denoiser of {model!r} sets sample_size to {unet.sample_size}. Give a model of square pictures, whose "
            "sample_size is one whole number, such as 64."
        )
    pipeline.unet.register_to_config(sample_size=sides[0])
    if getattr(pipeline.vae.config, "latents_mean", None):
        raise BackboneError(
            f"The model {model!r} shifts its latents and was trained with another kind of noise than SDXL, which "
            "Moongate does not support. Give a model that was trained like SDXL."
        )
    second = getattr(pipeline, "tokenizer_2", None)
    if second and second.get_vocab() != pipeline.tokenizer.get_vocab():
        raise BackboneError(f"The two tokenizers of {model!r} have different vocabularies, as no SDXL model has.")


def _check_schedule(scheduler: Any, model: str) -> None:
    """Refuse a noise schedule that is not one of betas, for which others would silently be taken in training."""
    try:
        schedule = DDPMScheduler.from_config(scheduler.config)
        schedule.set_timesteps(1)
    except LOADING_ERRORS as error:
        raise BackboneError(f"The noise schedule of {model!r} cannot be used: {first_line(error)}") from error
    betas, config = schedule.betas, schedule.config
    are_right = len(betas) == config.num_train_timesteps and bool(((betas >= 0) & (betas <= 1)).all())
    if not (hasattr(scheduler, "betas") and are_right and config.prediction_type in PREDICTIONS):
        raise BackboneError(
            f"The model {model!r} was trained with another kind of noise schedule than Stable Diffusion and SDXL. Give "
            "a model that was trained like them."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep remarks and progress bars of the libraries off the terminal while a model is loaded."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="huggingface_hub")  # diffusers uses deprecated calls
            yield
    finally:
        for library, (level, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()
