"""Captions and masks for photos that have none, as files to look at and to edit.

`write_captions` and `write_masks` write the files that training reads beside the photos. What describes or segments a
photo is a function that is passed in: the base model itself (`attention_segmenter`), its CLIP (`clip_describer`), or a
local model (`blip_describer`, `clipseg_segmenter`, `onnx_segmenter`).
"""

from moongate.annotation.captions import Stub, template_describer, write_captions
from moongate.annotation.describers import Description, blip_describer, clip_describer
from moongate.annotation.masks import Mask, attention_segmenter, binary, write_masks
from moongate.annotation.segmenters import clipseg_segmenter, onnx_segmenter

__all__ = [
    "Description",
    "Mask",
    "Stub",
    "attention_segmenter",
    "binary",
    "blip_describer",
    "clip_describer",
    "clipseg_segmenter",
    "onnx_segmenter",
    "template_describer",
    "write_captions",
    "write_masks",
]
