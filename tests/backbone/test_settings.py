import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from moongate import pocket
from moongate.backbone import SETTINGS_FILE, Backbone, Settings
from moongate.backbone.settings import CHECKS
from moongate.errors import BackboneError
from moongate.training.method import METHODS


def test_a_model_without_the_file_has_no_defaults_of_its_own(tmp_path: Path) -> None:
    settings = Settings.read(tmp_path / SETTINGS_FILE)
    assert settings == Settings()
    assert (settings.lr_scale, settings.retrieval_threshold) == (1.0, 0.85)
    assert not any((settings.method, settings.guidance, settings.regularization, settings.features))


def test_every_key_of_the_file_is_read(tmp_path: Path) -> None:
    content = {
        "method": "dreambooth",
        "lr_scale": 4,
        "steps_scale": 0.5,
        "joint_steps_scale": 0.25,
        "token_lr_scale": 12.0,
        "neutral_decay": 0.003,
        "guidance": 3.0,
        "regularization": "pool",
        "prompt_sets": ["pocket", "pocket-pair"],
        "features": ["pocket-clip"],
        "retrieval_threshold": 0.39,
        "rare_tokens": [20, 30],
        "shards": 2,
    }
    assert content.keys() == CHECKS.keys() == {field.name for field in fields(Settings)}
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(content))
    settings = Settings.read(tmp_path / SETTINGS_FILE)
    assert (settings.method, settings.lr_scale, settings.token_lr_scale) == ("dreambooth", 4, 12.0)
    assert (settings.neutral_decay, settings.shards) == (0.003, 2)
    assert (settings.steps_scale, settings.joint_steps_scale) == (0.5, 0.25)
    assert (settings.prompt_sets, settings.features) == (("pocket", "pocket-pair"), ("pocket-clip",))
    assert (settings.guidance, settings.retrieval_threshold, settings.rare_tokens) == (3.0, 0.39, (20, 30))


def test_a_backbone_brings_the_settings_of_its_folder(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / SETTINGS_FILE).write_text('{"guidance": 2, "rare_tokens": [40]}')
    backbone = Backbone.load(folder, device="cpu")
    assert backbone.settings == Settings(guidance=2, rare_tokens=(40,))
    assert backbone.rare_tokens == (40,)


def test_pocket_states_its_defaults_in_its_file() -> None:
    settings = Settings.read(pocket.weights_folder() / SETTINGS_FILE)
    assert settings.method in METHODS
    assert None not in (settings.guidance, settings.rare_tokens)
    assert settings.regularization == "pool"
    assert settings.prompt_sets == ("pocket", "pocket-pair")
    assert settings.features == ("pocket-clip", "efficientnet-lite0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"lr_scal": 2}', r"moongate.json has the unknown key 'lr_scal' \(2\). Known: method, lr_scale"),
        ('{"lr_scale": "4"}', r"moongate.json sets 'lr_scale' to \"4\". It must be a number above 0"),
        ('{"lr_scale": 0}', "'lr_scale' to 0. It must be a number above 0"),
        ('{"lr_scale": true}', "'lr_scale' to true"),
        ('{"steps_scale": 1e300}', r"'steps_scale' to 1e\+300. It must be a number above 0 and at most 100"),
        ('{"joint_steps_scale": 0}', "'joint_steps_scale' to 0. It must be a number above 0"),
        ('{"token_lr_scale": -1}', "'token_lr_scale' to -1. It must be a number above 0, such as 12.0"),
        ('{"neutral_decay": -1}', "'neutral_decay' to -1. It must be a number of 0 or more, such as 0.003"),
        ('{"guidance": NaN}', "'guidance' to NaN. It must be a number of 0 or more"),
        ('{"method": ""}', "'method' to \"\". It must be a name"),
        ('{"regularization": ["pool"]}', "'regularization' to"),
        ('{"prompt_sets": ["pocket"]}', "'prompt_sets' to .*a list of two names"),
        ('{"features": []}', r"'features' to \[\]. It must be a list of names"),
        ('{"retrieval_threshold": 85}', r"'retrieval_threshold' to 85. It must be a number in -1\.\.1"),
        ('{"rare_tokens": [1.5]}', r"'rare_tokens' to \[1.5\]. It must be a list of token ids"),
        ('{"rare_tokens": []}', r"'rare_tokens' to \[\]"),
        ("[1]", r"moongate.json holds \[1\]. It must be an object"),
        ("{", "moongate.json is not valid JSON"),
    ],
)
def test_an_unknown_key_or_a_wrong_value_is_named_with_its_file(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(content)
    with pytest.raises(BackboneError, match=message):
        Settings.read(tmp_path / SETTINGS_FILE)
