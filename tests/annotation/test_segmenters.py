import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from moongate.annotation import binary, clipseg_segmenter, onnx_segmenter
from moongate.backbone import Backbone
from moongate.errors import MissingLibrary, OptionError


def onnx_mean_of_colors(
    file: Path, *, channels: int = 3, pictures: int = 1, kind: int = onnx.TensorProto.FLOAT
) -> Path:
    """Write a model whose mask is the mean of the colors."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["picture"], ["mask"], axes=[1], keepdims=1)],
        "mean",
        [helper.make_tensor_value_info("picture", kind, [pictures, channels, 32, 32])],
        [helper.make_tensor_value_info("mask", kind, [pictures, 1, 32, 32])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


def test_an_onnx_file_segments_a_picture(tmp_path: Path) -> None:
    picture = np.zeros((64, 96, 3), dtype=np.uint8)
    picture[16:48, 24:72] = 255
    soft = onnx_segmenter(onnx_mean_of_colors(tmp_path / "mean.onnx"))(picture)
    assert soft.shape == (32, 32)
    white = np.mean([(1 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)])
    assert soft[16, 16] == pytest.approx(white, rel=1e-4)
    inside = binary(soft, (64, 96))
    assert (inside == (picture[..., 0] > 0)).mean() > 0.97


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="There is no file"):
        onnx_segmenter(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(OptionError, match="cannot be read as an ONNX model"):
        onnx_segmenter(tmp_path / "text.onnx")
    with pytest.raises(OptionError, match=r"has the inputs \[1, 4, 32, 32\]"):
        onnx_segmenter(onnx_mean_of_colors(tmp_path / "four.onnx", channels=4))


def test_a_model_in_half_precision_segments_and_inputs_of_other_kinds_are_refused(tmp_path: Path) -> None:
    picture = np.full((64, 96, 3), 255, dtype=np.uint8)
    half, numbers = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT32
    whole = onnx_segmenter(onnx_mean_of_colors(tmp_path / "mean.onnx"))(picture)
    assert onnx_segmenter(onnx_mean_of_colors(tmp_path / "half.onnx", kind=half))(picture) == pytest.approx(whole, 1e-2)
    with pytest.raises(OptionError, match=r"\[1, 3, 32, 32\] of tensor\(int32\). It must have one of .* float16"):
        onnx_segmenter(onnx_mean_of_colors(tmp_path / "numbers.onnx", kind=numbers))
    with pytest.raises(OptionError, match=r"has the inputs \[4, 3, 32, 32\]"):
        onnx_segmenter(onnx_mean_of_colors(tmp_path / "four.onnx", pictures=4))


def test_a_model_that_fails_is_named(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["picture"], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "three"], ["short"]),
            helper.make_node("Mul", ["short", "two"], ["sides"]),
            helper.make_node("Reshape", ["picture", "sides"], ["mask"]),
        ],
        "fails",
        [helper.make_tensor_value_info("picture", kind, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("mask", kind, None)],
        [helper.make_tensor(name, onnx.TensorProto.INT64, [1], [value]) for name, value in
         (("zero", 0), ("three", 3), ("two", 2))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "fails.onnx").write_bytes(model.SerializeToString())
    segment = onnx_segmenter(tmp_path / "fails.onnx")
    with pytest.raises(OptionError, match=r"fails.onnx cannot segment a picture: "):
        segment(np.zeros((32, 32, 3), dtype=np.uint8))


def test_without_onnxruntime_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingLibrary, match="segmentation"):
        onnx_segmenter(onnx_mean_of_colors(tmp_path / "mean.onnx"))


def test_clipseg_looks_for_the_category(tiny: Backbone, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tiny.tokenizer), "eos_token_id": tiny.tokenizer.eos_token_id}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, reduce_dim=16, extract_layers=[0, 1],
        decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    model = CLIPSegForImageSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    dog, house = (clipseg_segmenter(tmp_path, word)(picture) for word in ("dog", "house"))
    assert dog.shape == (352, 352)
    assert 0 < dog.min() <= dog.max() < 1
    assert not np.allclose(dog, house)
    whole = np.random.default_rng(1).integers(0, 256, (352, 352, 3), dtype=np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.from_numpy(whole).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        logits = model(**tiny.tokenizer(["dog"], return_tensors="pt"), pixel_values=pixels[None]).logits
    found = torch.from_numpy(clipseg_segmenter(tmp_path, "dog")(whole))
    torch.testing.assert_close(found, logits.sigmoid().view(352, 352), atol=1e-5, rtol=1e-4)
    assert clipseg_segmenter(tmp_path, "very " * 90 + "old dog")(picture).shape == (352, 352)


def test_a_folder_that_is_no_clipseg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"lacks config.json, tokenizer_config.json, model.safetensors of a clipseg"):
        clipseg_segmenter(tmp_path, "dog")
