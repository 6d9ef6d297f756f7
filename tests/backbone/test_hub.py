from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

from moongate.backbone import Backbone, hub
from moongate.errors import BackboneError

REPLY = SimpleNamespace(headers={}, request=None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the hub; its first entry is what the hub raises, if anything."""
    raised: list[Any] = []

    def answer(_self: HfApi, model: str, **_options: object) -> None:
        raised.append(model)
        if isinstance(raised[0], Exception):
            raise raised[0]

    monkeypatch.setattr(HfApi, "model_info", answer)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    return raised


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RepositoryNotFoundError("404", response=REPLY),
            "The hub has no model 'someone/sd', and there is no such folder",
        ),
        (GatedRepoError("403", response=REPLY), "only to users who accepted its license"),
        (HTTPError("no route"), "the hub cannot be reached: no route. Check the spelling"),
        (TimeoutError("too slow"), "the hub cannot be reached: too slow."),
    ],
)
def test_a_model_that_cannot_be_had_is_an_error_after_one_question(
    error: Exception, message: str, asked: list[Any]
) -> None:
    asked.append(error)
    with pytest.raises(BackboneError, match=message):
        Backbone.load("someone/sd", device="cpu")
    assert asked[1:] == ["someone/sd"]


@pytest.mark.parametrize(
    "model", ["../model", "./model", "a/b--c", "a/b.git", "ä/b", "a/" + "x" * 300, "x" * 300, "a\0b"]
)
def test_a_name_that_the_hub_cannot_have_is_not_asked_for(model: str, asked: list[Any]) -> None:
    for downloads in (True, False):
        with pytest.raises(BackboneError, match=r"There is no model .* here|is not on this machine"):
            Backbone.load(model, device="cpu", downloads=downloads, text_only=True)
    assert asked == []


def test_the_copy_on_this_machine_is_used_while_the_hub_is_out_of_reach(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.append(HTTPError("no route"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "/cache/model_index.json")
    assert hub.must_stay_offline("someone/sd", "model_index.json")
    del asked[0]
    assert not hub.must_stay_offline("someone/sd", "model_index.json")


def test_nothing_is_asked_when_the_environment_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="the hub cannot be reached.*offline"):
        hub.must_stay_offline("someone/sd", "model_index.json")


@pytest.mark.parametrize("name", ["sd15", "a b/c", "photos/dogs/rex", ""])
def test_what_is_no_model_id_is_not_asked_for(name: str, asked: list[Any]) -> None:
    with pytest.raises(BackboneError, match="There is no model .* here. Give pocket, a folder"):
        hub.must_stay_offline(name, "model_index.json")
    assert asked == []


def test_a_folder_is_not_asked_for(tiny_folder: Path, asked: list[Any]) -> None:
    assert Backbone.load(tiny_folder, device="cpu").name == str(tiny_folder)
    assert asked == []
