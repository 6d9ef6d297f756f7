"""The package's door, `moongate/__init__.py`."""

import ast
import importlib.metadata
import inspect
from pathlib import Path

import pytest

import moongate
from moongate import errors


def imported_for_type_checkers() -> dict[str, str]:
    """The module of each name in the TYPE_CHECKING block."""
    (block,) = (node for node in ast.parse(Path(moongate.__file__).read_text()).body if isinstance(node, ast.If))
    return {name.name: node.module for node in block.body for name in node.names}


def test_the_lists_of_the_door_hold_the_same_names() -> None:
    homes = {name: f"moongate.{module}" for module, names in moongate._HOMES.items() for name in names}
    assert imported_for_type_checkers() == homes
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    exceptions = {name for name, value in classes.items() if issubclass(value, Exception)}
    assert set(moongate.__all__) == homes.keys() | exceptions
    assert list(moongate.__all__) == sorted(moongate.__all__)
    assert set(moongate.__all__) <= set(dir(moongate))


@pytest.mark.parametrize("name", moongate.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(moongate, name) is getattr(moongate, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'moongate' has no attribute 'magic'"):
        _ = moongate.magic


def test_the_version_is_that_of_the_installed_package() -> None:
    assert moongate.__version__ == importlib.metadata.version("moongate")


def test_the_citation_names_the_version() -> None:
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {moongate.__version__}\n" in citation
