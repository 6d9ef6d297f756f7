"""Segment photos with a local model: any ONNX file from a picture to one mask, or CLIPSeg, which reads a word."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from moongate.annotation.describers import check_folder, resized
from moongate.annotation.masks import Segmenter
from moongate.errors import BackboneError, OptionError, first_line
from moongate.evaluation.networks.preprocessing import normalized
from moongate.evaluation.networks.pretrained import pretrained
from moongate.extras import library

__all__ = ["clipseg_segmenter", "onnx_segmenter"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the colors, in 0..1, that both kinds of models were trained with."""
SIDE_PX = 320
"""Side of the input of a file that takes any: that of U2Net."""
NUMBERS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
"""Types of the input that a model may have, as onnxruntime calls them."""
CLIPSEG_SIDE_PX = 352
CLIPSEG_FILES = ("config.json", "tokenizer_config.json")


def onnx_segmenter(file: Path) -> Segmenter:
    """Return a segmenter that runs an ONNX file: one input [1, 3, s, s], the first output one mask [1, 1, s, s].

    Pictures are given in ImageNet's colors, as U2Net and its relatives expect.

    Args:
        file: The ONNX file.

    Raises:
        OptionError: There is no such file, it cannot be read, or its input is another one. The segmenter raises it if
            the model fails, or its output is no mask.
        MissingLibrary: onnxruntime is not installed.
    """
    if not file.is_file():
        raise OptionError(f"There is no file {file}. Give an ONNX file, or the folder of a CLIPSeg model.")
    runtime = library("onnxruntime")
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except _model_errors() as error:
        raise OptionError(f"{file} cannot be read as an ONNX model: {first_line(error)}") from error
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    takes_one = len(shape) == 4 and (shape[0] == 1 or not isinstance(shape[0], int))
    if not (takes_one and shape[1] == 3 and shape[2] == shape[3] and inputs[0].type in NUMBERS):
        kinds = "; ".join(f"{list(value.shape)} of {value.type}" for value in inputs) or "none"
        raise OptionError(
            f"{file} has the inputs {kinds}. It must have one of [1, 3, side, side], of float or float16, such as "
            "U2Net's."
        )
    side_px = shape[2] if isinstance(shape[2], int) else SIDE_PX

    def segment(picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "rows columns"]:
        pixels = normalized(resized(picture, side_px), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        try:
            found = session.run(None, {inputs[0].name: pixels.numpy().astype(NUMBERS[inputs[0].type])})[0]
        except _model_errors() as error:
            raise OptionError(f"{file} cannot segment a picture: {first_line(error)}") from error
        output = np.asarray(found, dtype=np.float32).squeeze()
        if output.ndim != 2:
            raise OptionError(f"The first output of {file} has the shape {list(output.shape)}; it must be one mask.")
        return output

    return segment


def _model_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises for a file that is no model, or fails; its errors have no common class."""
    states = library("onnxruntime.capi.onnxruntime_pybind11_state")
    return (
        *(states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf, states.NotImplemented),
        *(states.NoSuchFile, states.RuntimeException),
    )


def clipseg_segmenter(folder: Path, category: str, *, device: str = "cpu") -> Segmenter:
    """Return a segmenter that lets a local CLIPSeg look for the category.

    Args:
        folder: A folder with a `CLIPSegForImageSegmentation` of transformers and its tokenizer.
        category: What to look for.
        device: Where the model computes.

    Raises:
        OptionError: The folder is no such model; the message names what is missing.
        BackboneError: The model cannot be read.
    """
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation

    check_folder(folder, "clipseg", CLIPSEG_FILES)
    model: Any = pretrained(CLIPSegForImageSegmentation, folder, device=device, downloads=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{folder} has no tokenizer that can be read: {first_line(error)}") from error
    length = model.config.text_config.max_position_embeddings
    words = tokenizer([category], return_tensors="pt", truncation=True, max_length=length).to(device)

    def segment(picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "rows columns"]:
        pixels = normalized(resized(picture, CLIPSEG_SIDE_PX), mean=IMAGENET_MEAN, std=IMAGENET_STD).to(device)
        with torch.no_grad():
            logits = model(input_ids=words.input_ids, pixel_values=pixels, attention_mask=words.attention_mask).logits
        return logits.reshape(logits.shape[-2:]).sigmoid().cpu().numpy()

    return segment
