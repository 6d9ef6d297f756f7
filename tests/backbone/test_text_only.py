"""The part of a model that a merge reads."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from making import make_concept
from moongate.backbone import Backbone
from moongate.backbone.file_tokenizer import FileTokenizer
from moongate.backbone.text_only import TextModel
from moongate.errors import BackboneError, BaseMismatchError
from moongate.merging import merge

CAPTIONS = ["photo of a teddy bear on the beach", "", "a dog  in Drawing, 2 <bear> cats' ÄÖ 🐻 far", "red " * 40]


def test_text_is_read_as_by_the_whole_model(each: Backbone, family_folder: Path) -> None:
    part = Backbone.load(family_folder, text_only=True)
    assert isinstance(part.text_encoder, TextModel)
    assert part.fingerprint == each.fingerprint
    assert part.token_widths == each.token_widths
    assert part.rare_tokens == each.rare_tokens
    assert torch.equal(part.token_row(7), each.token_row(7))
    rows = {"<bear>": each.random_row(torch.Generator().manual_seed(1))}
    with each.tokens(rows), part.tokens(rows), torch.no_grad():
        assert torch.equal(part.token_ids(CAPTIONS), each.token_ids(CAPTIONS))
        assert [part.words(caption) for caption in CAPTIONS] == [each.words(caption) for caption in CAPTIONS]
        theirs, ours = each.encode_text(CAPTIONS), part.encode_text(CAPTIONS)
    torch.testing.assert_close(ours.features, theirs.features, atol=1e-5, rtol=1e-5)
    if theirs.pooled is not None:
        torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text_only", [False, True])
def test_without_the_padding_the_features_up_to_the_end_are_the_same(
    each: Backbone, family_folder: Path, text_only: bool
) -> None:
    backbone = Backbone.load(family_folder, text_only=True) if text_only else each
    with torch.no_grad():
        short, padded = (backbone.encode_text(["a dog", "a small bear", ""], padded=way) for way in (False, True))
    length = len(backbone.tokenizer("a small bear").input_ids)
    assert short.features.shape[1] == length < padded.features.shape[1]
    torch.testing.assert_close(short.features, padded.features[:, :length], atol=1e-5, rtol=1e-5)
    if padded.pooled is not None:
        torch.testing.assert_close(short.pooled, padded.pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_tokenizer_reads_like_transformers_own(tiny: Backbone, tiny_folder: Path, caption: str) -> None:
    ours = FileTokenizer(tiny_folder / "tokenizer")
    assert list(ours(caption).input_ids) == list(tiny.tokenizer(caption).input_ids)
    assert ours.tokenize(caption) == tiny.tokenizer.tokenize(caption)
    assert ours.get_vocab() == tiny.tokenizer.get_vocab()


def test_a_merge_is_the_same_up_to_rounding(tiny: Backbone, tiny_folder: Path) -> None:
    concept = make_concept(tiny, low_rank=False)
    part = Backbone.load(tiny_folder, text_only=True)
    whole, read = (merge(backbone, [concept]).concept for backbone in (tiny, part))
    for name, change in whole.deltas.items():
        torch.testing.assert_close(read.deltas[name].full(), change.full(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("lacking", "instead"),
    [
        ("text_encoder/model.safetensors", "pytorch_model.bin"),
        ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    ],
)
def test_an_unusual_folder_is_loaded_whole(tiny_folder: Path, tmp_path: Path, lacking: str, instead: str) -> None:
    file = shutil.copytree(tiny_folder, tmp_path / "model") / lacking
    torch.save(load_file(file), file.with_name(instead))
    file.unlink()
    assert not isinstance(Backbone.load(tmp_path / "model", text_only=True).text_encoder, TextModel)


@pytest.mark.parametrize("lacking", [".to_k.weight", ".to_[kv].weight"])
def test_a_key_or_value_that_a_model_lacks_is_named(
    tiny: Backbone, tiny_folder: Path, tmp_path: Path, lacking: str
) -> None:
    file = shutil.copytree(tiny_folder, tmp_path / "model") / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    layer = next(name for name in weights if name.endswith(".attn2.to_k.weight")).removesuffix(".to_k.weight")
    save_file({name: weights[name] for name in weights if not re.fullmatch(re.escape(layer) + lacking, name)}, file)
    with pytest.raises(BackboneError, match=rf"lacks weights .*{re.escape(layer)}.to_k.weight"):
        Backbone.load(tmp_path / "model", text_only=True, layouts=[tiny.fingerprint.layout])


def test_another_layout_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(BaseMismatchError, match="other layers"):
        Backbone.load(tiny_folder, text_only=True, layouts=["0" * 12])


def test_a_merge_imports_no_classes_of_models(tiny: Backbone, tiny_folder: Path, tmp_path: Path) -> None:
    file = make_concept(tiny, low_rank=False).save(tmp_path / "bear.safetensors")
    code = (
        "import json, sys; from moongate.cli import main; "
        f"main(['merge', {str(file)!r}, '--model', {str(tiny_folder)!r}, '--check', '--quiet']); "
        "print(json.dumps([name for name in ('transformers', 'diffusers', 'huggingface_hub') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout or "null") == [], done.stderr


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("tokenizer/tokenizer.json", {"normalizer": {"type": "Sequence"}}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": float("inf")}),
        ("text_encoder/config.json", {"num_attention_heads": 3}),
    ],
)
def test_what_is_odd_in_a_folder_is_left_to_loading_it_whole(
    tiny_folder: Path, tmp_path: Path, file: str, values: dict[str, Any]
) -> None:
    odd = shutil.copytree(tiny_folder, tmp_path / "model") / file
    odd.write_text(json.dumps(json.loads(odd.read_text()) | values))
    try:
        assert not isinstance(Backbone.load(tmp_path / "model", text_only=True).text_encoder, TextModel)
    except BackboneError as error:
        assert "cannot be loaded" in str(error)  # noqa: PT017
