"""What a model folder may hold, checked before anything of it is loaded: classes, their sizes, and links.

The classes build what a configuration says, whether or not weights of that size follow, so its numbers are limited.
"""

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from moongate.backbone.hub import INDEX
from moongate.errors import BackboneError, BaseMismatchError
from moongate.files import leads_out
from moongate.fingerprint import layout_of
from moongate.limits import MAX_LAYERS, MAX_SETTING
from moongate.texts import parse_json, read_text

__all__ = ["FAMILIES", "WITHOUT", "check_classes", "check_folder", "check_layouts"]

WITHOUT: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {**WITHOUT, "safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {**WITHOUT, "add_watermarker": False},
}
"""The pipeline classes that can be used, and the parts of each that are left out. They are imported when a model is
loaded, because diffusers and transformers print remarks on importing them too."""
CLASSES: dict[str, tuple[str, frozenset[str]]] = {
    "text_encoder": ("transformers", frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})),
    "text_encoder_2": ("transformers", frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})),
    "tokenizer": ("transformers", frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "tokenizer_2": ("transformers", frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "unet": ("diffusers", frozenset({"UNet2DConditionModel"})),
    "vae": ("diffusers", frozenset({"AutoencoderKL", "AutoencoderTiny"})),
}
"""For each part its library and the classes that a model may name. Others can import a module of the model's author."""
SCHEDULER = "scheduler"
"""The part that may name any scheduler class of diffusers."""
CONFIGURATIONS = {part: "config.json" for part in CLASSES if not part.startswith("tokenizer")}
CONFIGURATIONS |= {SCHEDULER: "scheduler_config.json"}
SHARDS = "*/*.index*.json"
"""Files that say which file has which weights, where a part has several: `model.safetensors.index.fp16.json`."""
LAYERS = re.compile("layer|block|^number of ")
"""Keys whose numbers may say how often something is built."""


def check_classes(index: Mapping[str, Any], model: str) -> None:
    """Refuse a model that names classes in which its author's own code could run.

    Args:
        index: The content of its `model_index.json`, of one of `FAMILIES`.
        model: What errors call it.

    Raises:
        BackboneError: A class is not known.
    """
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or part in FAMILIES[str(index["_class_name"])]:
            continue
        library, name = [*map(str, entry), "", ""][:2]
        if part == SCHEDULER:
            known = library == "diffusers" and _is_scheduler(name)
        else:
            expected, names = CLASSES.get(part, ("", frozenset()))
            known = library == expected and name in names
        if not known and entry != [None, None]:
            raise BackboneError(
                f"The model {model!r} names the class {library}.{name} for its {part!r}. Moongate loads only classes "
                f"that run no code of the model's author: {_known_classes(part)}."
            )


def check_folder(folder: Path) -> None:
    """Refuse a model folder with links or names of files that lead out of it, pipes, or configurations of any size.

    Args:
        folder: A folder with an index. Others are no models, and may be the whole disk.

    Raises:
        BackboneError: The message names the file.
    """
    for path in (folder, *folder.rglob("*")):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BackboneError(f"{path} is a pipe or a device, which may have no end. Remove it from the model.")
        if path != folder and leads_out(path) and not _is_in(Path(os.path.realpath(path)), folder):
            raise BackboneError(f"{path} is a link that leads out of the model's folder. Replace it by a copy.")
    for file in (folder / INDEX, *(folder / part / name for part, name in CONFIGURATIONS.items())):
        if not file.exists():
            continue
        for key, value in _numbers(_object_in(file)):
            at_most = MAX_LAYERS if LAYERS.search(key) and not key.endswith("channels") else MAX_SETTING
            if not abs(value) <= at_most:
                raise BackboneError(f"{file} sets {key} to {value}; models of Moongate have at most {at_most}.")
    for file in sorted(folder.glob(SHARDS)):
        _check_shards(file)


def check_layouts(
    model: str,
    shapes: Mapping[str, tuple[int, ...]] | None,
    layouts: Collection[str],
    *,
    endings: tuple[str, ...],
) -> None:
    """Compare the keys and values of a denoiser with the layouts that concepts expect.

    Args:
        model: What messages call the model.
        shapes: What `denoiser_shapes` returned.
        layouts: The layouts.
        endings: How the names of keys and values end.

    Raises:
        BaseMismatchError: A layout is another one.
    """
    if shapes is None:
        return
    layout = layout_of({f"unet.{name}": shapes[name] for name in sorted(shapes) if name.endswith(endings)})
    if any(other != layout for other in layouts):
        raise BaseMismatchError(
            f"The concept was made for a model with other layers than {model!r}. Name the model that it was made for "
            "with --model."
        )


def _object_in(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model."""
    try:
        value = parse_json(read_text(file))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file} cannot be read ({error}). Copy or download the model again.") from error
    return value


def _check_shards(file: Path) -> None:
    """Refuse a listing of weights that names no files, or files that are not beside it."""
    files = _object_in(file).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise BackboneError(f"{file} does not say which file has which weights. Copy or download the model again.")
    for name in files.values():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\\" in name:
            raise BackboneError(
                f"{file} names the file {name!r:.80}, which is not in its folder. Copy or download the model again."
            )


def _is_in(path: Path, folder: Path) -> bool:
    """Return whether a path is in a folder, or in the blobs of the hub's cache, to which its snapshots link."""
    place = folder.resolve()
    return path.is_relative_to(place) or path.parent == place.parent.parent / "blobs"


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers at any depth of a configuration with their keys, and the lengths of its lists of blocks.

    A lower bound of minus infinity, which DPM-Solver's schedulers write, is no size.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, str(name))
    elif isinstance(value, list):
        if not all(isinstance(item, float) for item in value):
            yield f"number of {key}", len(value)
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, int) or (isinstance(value, float) and not math.isnan(value) and value != -math.inf):
        yield key, value


def _is_scheduler(name: str) -> bool:
    import diffusers
    from diffusers import SchedulerMixin

    kind = getattr(diffusers, name, None)
    return isinstance(kind, type) and issubclass(kind, SchedulerMixin)


def _known_classes(part: str) -> str:
    if part == SCHEDULER:
        return "the schedulers of diffusers"
    return ", ".join(sorted(CLASSES[part][1])) if part in CLASSES else f"the parts {', '.join(CLASSES)}, {SCHEDULER}"
