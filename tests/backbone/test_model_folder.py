"""Links, sizes and damage of a model folder. Its classes: test_loading.py."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from moongate.backbone import Backbone
from moongate.backbone.model_folder import check_folder
from moongate.errors import BackboneError
from moongate.pocket import weights_folder
from moongate.sampling import SampleOptions, sample


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "models" / "snapshots" / "model")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_link_that_leads_out_of_a_model_is_refused_and_those_of_the_hubs_cache_are_not(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    weights.rename(blobs / "abc")
    weights.symlink_to("../../../blobs/abc")
    check_folder(folder)
    (folder.parent / "private").write_text("private")
    (folder / "tokenizer" / "notes.txt").symlink_to("../../private")
    with pytest.raises(BackboneError, match=r"notes.txt is a link that leads out of the model's folder"):
        Backbone.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("unet/config.json", {"block_out_channels": [10**9, 10**9]}, "block_out_channels to 1000000000"),
        ("unet/config.json", {"layers_per_block": 10**5}, "layers_per_block to 100000"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 3000}, "number of down_block_types to 3000"),
        ("vae/config.json", {"num_encoder_blocks": [1, 1, 10**6, 1]}, "num_encoder_blocks to 1000000"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers to 1000000"),
        ("text_encoder/config.json", {"hidden_size": 1e30}, r"hidden_size to 1e\+30"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}, "num_train_timesteps to 10000000000"),
    ],
)
def test_a_model_of_any_size_is_refused_before_it_is_built(
    file: str, values: dict[str, Any], said: str, folder: Path
) -> None:
    change(folder / file, **values)
    with pytest.raises(BackboneError, match=f"{file} sets {said}; models of Moongate have at most"):
        Backbone.load(folder, device="cpu")


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler])
def test_a_model_with_a_scheduler_that_has_no_lower_bound_is_loaded_and_draws(folder: Path, kind: Any) -> None:
    kind.from_config(json.loads((folder / "scheduler" / "scheduler_config.json").read_text())).save_pretrained(
        folder / "scheduler"
    )
    assert "-Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    change(folder / "model_index.json", scheduler=["diffusers", kind.__name__])
    backbone = Backbone.load(folder, device="cpu")
    (drawn,) = sample(backbone, ["photo of a dog"], seeds=[0], options=SampleOptions(steps=2))
    assert drawn.image.std() > 0


def test_the_layout_is_not_built_from_such_a_model_either(folder: Path) -> None:
    change(folder / "unet" / "config.json", layers_per_block=10**6)
    with pytest.raises(BackboneError, match="layers_per_block"):
        Backbone.load(folder, device="cpu", layouts=("x",))


def test_a_configuration_that_is_a_name_is_refused_and_not_looked_up_in_the_hub(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text('"someone/model"')
    with pytest.raises(BackboneError, match=r"unet/config.json cannot be read \(it is not a JSON object\)"):
        Backbone.load(folder, device="cpu")


def test_a_damaged_tokenizer_is_an_error_of_ours(folder: Path) -> None:
    change(folder / "tokenizer" / "tokenizer.json", normalizer={"type": "Sequence"})
    with pytest.raises(BackboneError, match="cannot be loaded"):
        Backbone.load(folder, device="cpu")


def test_pocket_passes() -> None:
    check_folder(weights_folder())


@pytest.mark.parametrize("file", ["model_index.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_pipe_in_a_model_is_refused_and_not_waited_for(file: str, folder: Path) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    for options in ({}, {"text_only": True}, {"layouts": ("x",)}):
        with pytest.raises(BackboneError, match=f"{file} is a pipe or a device"):
            Backbone.load(folder, device="cpu", **options)


def test_a_folder_that_is_no_model_is_not_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model_index.json").unlink()
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("searched"))
    with pytest.raises(BackboneError, match="no file named model_index.json"):
        Backbone.load(folder, device="cpu", layouts=("x",))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"beta_schedule": "other"}, "other is not implemented"),
        ({"timestep_spacing": "other"}, "The noise schedule of .* cannot be used: other is not supported"),
        ({"beta_end": math.nan}, "was trained with another kind of noise schedule"),
        ({"trained_betas": [0.1, 0.2]}, "was trained with another kind of noise schedule"),
        ({"prediction_type": "flow"}, "was trained with another kind of noise schedule"),
        (None, "was trained with another kind of noise schedule"),
    ],
)
def test_a_model_with_another_kind_of_noise_schedule_is_refused(
    values: dict[str, Any] | None, said: str, folder: Path
) -> None:
    if values:
        change(folder / "scheduler" / "scheduler_config.json", **values)
    else:
        FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
        change(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(BackboneError, match=said):
        Backbone.load(folder, device="cpu")


@pytest.mark.parametrize("text_only", [False, True])
def test_captions_have_the_length_of_the_text_encoder_whatever_the_tokenizer_says(
    text_only: bool, tiny: Backbone, folder: Path
) -> None:
    config = folder / "tokenizer" / "tokenizer_config.json"
    facts = json.loads(config.read_text())
    del facts["model_max_length"]
    for length in ({}, {"model_max_length": 1e30}, {"model_max_length": 500}):
        config.write_text(json.dumps(facts | length))
        backbone = Backbone.load(folder, device="cpu", text_only=text_only)
        assert torch.equal(backbone.token_ids(["photo of a dog"]), tiny.token_ids(["photo of a dog"]))
    for wrong in (0, "x"):
        change(config, model_max_length=wrong)
        with pytest.raises(BackboneError, match="sets model_max_length to|cannot be loaded"):
            Backbone.load(folder, device="cpu", text_only=text_only)


@pytest.mark.parametrize("part", ["", "vae"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_model_or_part_that_was_copied_in_half_precision_alone_is_loaded(
    tiny: Backbone, folder: Path, ending: str, part: str
) -> None:
    for file in (folder / part).rglob("*.safetensors"):
        if ending == "bin":
            stem = "pytorch_model" if file.stem == "model" else file.stem
            torch.save(load_file(file), file.with_name(f"{stem}.fp16.bin"))
            file.unlink()
        else:
            file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert Backbone.load(folder, device="cpu").fingerprint == tiny.fingerprint


@pytest.mark.parametrize("text_only", [False, True])
@pytest.mark.parametrize("lacking", ["tokenizer", "tokenizer/tokenizer.json"])
def test_a_model_without_the_words_of_its_tokenizer_is_refused(folder: Path, lacking: str, text_only: bool) -> None:
    """transformers makes a tokenizer of two words then, to which every caption is nonsense."""
    (folder / lacking).rename(folder.parent / "elsewhere")
    with pytest.raises(BackboneError, match=r"tokenizer knows 2 of 561 words: its files are missing"):
        Backbone.load(folder, device="cpu", text_only=text_only)


def test_an_index_that_is_no_object_is_named(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(BackboneError, match=r"model_index.json cannot be read \(it is not a JSON object\)"):
        Backbone.load(folder, device="cpu")


@pytest.mark.parametrize("name", ["../../private.safetensors", "/etc/hosts", "..", None])
@pytest.mark.parametrize("text_only", [False, True])
def test_weights_in_several_files_are_read_from_their_own_folder_alone(
    name: str | None, text_only: bool, folder: Path
) -> None:
    part = folder / "text_encoder"
    names = [*load_file(part / "model.safetensors")]
    (part / "model.safetensors").rename(folder.parent / "private.safetensors")
    listing = part / "model.safetensors.index.json"
    listing.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, name)}))
    with pytest.raises(BackboneError, match="is not in its folder"):
        Backbone.load(folder, device="cpu", text_only=text_only)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": ["a"]}'])
def test_a_listing_of_weights_that_cannot_be_read_is_named(content: str, folder: Path) -> None:
    listing = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    listing.write_text(content)
    with pytest.raises(BackboneError, match=r"diffusion_pytorch_model\.safetensors\.index\.json"):
        Backbone.load(folder, device="cpu")
