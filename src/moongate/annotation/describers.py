"""Describe photos: by the nearest words in CLIP's features, or by a local BLIP."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from moongate.data.captions import with_article, with_words
from moongate.data.pictures import as_tensor
from moongate.errors import BackboneError, OptionError, first_line
from moongate.evaluation.networks.clip import CLIP_MEAN, CLIP_STD, Clip
from moongate.evaluation.networks.preprocessing import normalized
from moongate.evaluation.networks.pretrained import pretrained
from moongate.texts import parse_json, read_text

__all__ = [
    "COLORS",
    "PLACES",
    "STYLES",
    "Describer",
    "Description",
    "blip_describer",
    "check_folder",
    "clip_describer",
    "resized",
]

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]

PLACES = (
    "on the beach", "in the snow", "at night", "in a garden", "in the desert", "in the mountains", "under water",
    "in a meadow", "in a forest", "in a city", "in a room", "in a workshop", "on a white background",
    "on a black background", "on a grey background",
)  # fmt: skip
"""Places in the words of pocket's corpus, which other CLIP models know as well; so are colors and styles."""
COLORS = ("white", "grey", "black", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
STYLES = ("photo", "drawing", "3d render", "watercolor painting", "pixel art")
BLIP_FILES = ("config.json", "tokenizer_config.json")
"""Files of a BLIP folder besides its weights."""
WORDS_AT_MOST = 30
"""Longest description by BLIP, in its tokens."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """A caption with `{}` for the subject, and what it was made of."""

    caption: str
    found: Mapping[str, str] = field(default_factory=dict)
    """What was found in the photo by kind, such as place or color."""


Describer = Callable[[Pictures], list[Description]]
"""Takes pictures, each uint8 [height, width, 3], and returns one description of each."""


def clip_describer(clip: Clip, category: str, *, says_color: bool = False) -> Describer:
    """Return a describer that finds the nearest place, style and color among those of this module.

    The place is found first, then the style among sentences with this place, then the color among sentences with both.

    Args:
        clip: A CLIP model with an image tower.
        category: The word for what the subject is.
        says_color: Whether the caption names the color. What a caption says, the token does not learn; so leave it out
            unless the subject itself comes in several colors.

    Raises:
        OptionError: The model has no image tower.
    """
    clip.check_pictures()
    plain = with_article(category)

    @cache
    def features(sentences: tuple[str, ...]) -> Float[Tensor, "sentences features"]:
        return clip.captions(sentences)

    def nearest(seen: Float[Tensor, " features"], sentences: Mapping[str, str]) -> str:
        return list(sentences)[int((features(tuple(sentences.values())) @ seen).argmax())]

    def describe(pictures: Pictures) -> list[Description]:
        result = []
        for seen in clip.pictures(pictures):
            place = nearest(seen, {place: f"photo of {plain} {place}" for place in PLACES})
            style = nearest(seen, {style: f"{style} of {plain} {place}" for style in STYLES})
            nouns = {color: with_article(f"{color} {category}") for color in COLORS}
            color = nearest(seen, {color: f"{style} of {noun} {place}" for color, noun in nouns.items()})
            subject = with_article(f"{color} {{}}") if says_color else "a {}"
            found = {"place": place, "style": style, "color": color}
            result.append(Description(caption=f"{style} of {subject} {place}", found=found))
        return result

    return describe


def blip_describer(folder: Path, category: str, *, device: str = "cpu") -> Describer:
    """Return a describer that lets a local BLIP write the captions.

    The category in its sentence becomes `{}`. If the sentence does not name it, it follows behind "photo of a {}".

    Args:
        folder: A folder with a `BlipForConditionalGeneration` of transformers and its tokenizer.
        category: The word for what the subject is.
        device: Where the model computes.

    Raises:
        OptionError: The folder is no such model; the message names what is missing.
        BackboneError: The model cannot be read.
    """
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    check_folder(folder, "blip", BLIP_FILES)
    model = pretrained(BlipForConditionalGeneration, folder, device=device, downloads=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{folder} has no tokenizer that can be read: {first_line(error)}") from error
    side_px = model.config.vision_config.image_size

    def describe(pictures: Pictures) -> list[Description]:
        sentences = []
        for picture in pictures:
            pixels = normalized(resized(picture, side_px), mean=CLIP_MEAN, std=CLIP_STD).to(device)
            with torch.no_grad():
                ids = model.generate(pixel_values=pixels, max_new_tokens=WORDS_AT_MOST, num_beams=3, do_sample=False)
            sentences.append(" ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split()))
        return [Description(caption=_with_place(text, category), found={"sentence": text}) for text in sentences]

    return describe


def resized(picture: UInt8[np.ndarray, "height width 3"], side_px: int) -> Float[Tensor, "1 3 {side_px} {side_px}"]:
    """Return a picture in -1..1, stretched to a square, so that nothing of it is cut off."""
    size = (side_px, side_px)
    return F.interpolate(as_tensor(picture)[None], size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def _with_place(sentence: str, category: str) -> str:
    """Return a sentence with `{}` for the subject."""
    named = rf"(?<!\S){re.escape(category)}(?!\S)"
    if re.search(named, sentence):
        return with_words(sentence, named, "{}", count=1)
    return f"photo of a {{}}, {sentence}" if sentence else "photo of a {}"


def check_folder(folder: Path, kind: str, files: Sequence[str]) -> None:
    """Check that a folder holds a model of transformers of a kind.

    Raises:
        OptionError: It does not exist, lacks files, or holds another kind of model.
    """
    if not folder.is_dir():
        raise OptionError(f"There is no folder {folder}. Download a {kind} model of transformers into one.")
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    missing = [name for name in files if not (folder / name).is_file()] + ([] if weights else ["model.safetensors"])
    if missing:
        raise OptionError(f"{folder} lacks {', '.join(missing)} of a {kind} model. Give the whole folder of the model.")
    try:
        found = parse_json(read_text(folder / "config.json")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise OptionError(f"{folder / 'config.json'} is not the configuration of a model: {error}.") from error
    if found != kind:
        raise OptionError(f"{folder} holds a model of type {found!r}; this needs one of type {kind!r}.")
