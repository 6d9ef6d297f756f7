import json
import sys
import tomllib
from pathlib import Path

import pytest

from moongate.errors import MissingLibrary
from moongate.extras import EXTRAS, library, versions


def test_a_library_or_a_module_of_it_is_imported() -> None:
    assert library("json") is json
    assert library("json.decoder") is json.decoder


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibrary, match=rf"{name}, which is not installed.*pip install '\.\[{EXTRAS[name]}\]'"):
        library(name)


def test_the_extras_that_messages_name_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])


def test_a_result_depends_on_these_versions() -> None:
    assert set(versions()) == {"python", "moongate", "torch", "diffusers", "transformers"}
    assert all(versions().values())
