"""What a model folder may name, and from where a model may come."""

import json
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

from conftest import make_tiny_model
from moongate.backbone import Backbone
from moongate.backbone.loading import denoiser_shapes
from moongate.errors import BackboneError, BaseMismatchError


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("text_encoder", ["transformers", "AutoModel"]),
        ("text_encoder", ["transformers", "NoSuchClass"]),
        ("tokenizer", ["evil", "Tokenizer"]),
        ("scheduler", ["scheduling_evil", "Scheduler"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("unet", ["my_unet", "UNet2DConditionModel"]),
        ("vae", ["diffusers", "AutoModel"]),
        ("helper", ["diffusers", "UNet2DConditionModel"]),
    ],
)
def test_a_model_may_name_only_classes_that_run_no_code_of_its_author(
    part: str, entry: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: entry}))
    witness = tmp_path / "witness"
    for place in (folder, folder / "text_encoder", folder / "tokenizer"):
        for module in ("evil", "scheduling_evil", "my_unet"):
            (place / f"{module}.py").write_text(f"open({str(witness)!r}, 'w')")
    config = folder / "text_encoder" / "config.json"
    settings = {"model_type": "evil", "auto_map": {"AutoModel": "evil.E", "AutoConfig": "evil.C"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(BackboneError, match=rf"names the class {entry[0]}\.{entry[1]} for its '{part}'"):
        Backbone.load(folder, device="cpu")
    assert not witness.exists()


def test_a_configuration_that_asks_for_code_is_loaded_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0)
    for part, name in (("text_encoder", "config.json"), ("tokenizer", "tokenizer_config.json")):
        file = folder / part / name
        auto = {"AutoModel": "evil.E", "AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": auto}))
        (folder / part / "evil.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    Backbone.load(folder, device="cpu")
    assert not (tmp_path / "witness").exists()


def test_a_model_that_only_a_file_names_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(BackboneError, match=r"'evil/model' is not on this machine.*add --model evil/model"):
        Backbone.load("evil/model", device="cpu", downloads=False)


def test_the_layout_of_a_concept_is_compared_before_weights_are_read(tiny: Backbone, tiny_folder: Path) -> None:
    shapes = denoiser_shapes(str(tiny_folder))
    assert shapes == {name: tuple(weight.shape) for name, weight in tiny.unet.named_parameters()}
    layout = tiny.fingerprint.layout
    assert Backbone.load(tiny_folder, device="cpu", layouts={layout}).fingerprint == tiny.fingerprint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moongate.backbone.loading.load_pipeline", lambda *_, **__: pytest.fail("weights were read"))
        with pytest.raises(BaseMismatchError, match="other layers than"):
            Backbone.load(tiny_folder, device="cpu", layouts={"0" * 64})


@pytest.mark.parametrize("family", ["pocket", "sdxl"])
def test_a_size_of_two_equal_sides_is_one_and_others_are_refused(family: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0, family=family)
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    for size in ([8, 12], None):
        file.write_text(json.dumps(config | {"sample_size": size}))
        with pytest.raises(BackboneError, match=r"sets sample_size to (\[8, 12\]|None). Give a model of square"):
            Backbone.load(folder, device="cpu")
    file.write_text(json.dumps(config | {"sample_size": [8, 8]}))
    assert Backbone.load(folder, device="cpu").resolution_px == 64


@pytest.mark.parametrize(
    "further", [{"num_class_embeds": 3}, {"encoder_hid_dim": 16}, {"class_embed_type": "timestep"}]
)
def test_a_denoiser_that_needs_further_inputs_is_refused(further: dict[str, object], tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=0)
    config = json.loads((folder / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config(config | further).save_pretrained(folder / "unet")
    with pytest.raises(BackboneError, match=f"takes other inputs than.*{next(iter(further))}"):
        Backbone.load(folder, device="cpu")
