"""The house rules that import-linter does not check: sizes, the homes of heavy libraries, and what is public.

The layers are contracts in pyproject.toml, which `make check` holds against the code.
"""

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import moongate

SOURCE = Path(moongate.__file__).parent
ONLY_IN = {
    "diffusers": {"backbone"},
    "transformers": {"annotation", "backbone", "evaluation"},
    "torchvision": set(),
}
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 450, 60, 8


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


@pytest.mark.parametrize(("library", "homes"), ONLY_IN.items())
def test_heavy_libraries_have_one_home(library: str, homes: set[str]) -> None:
    users = set()
    for name, tree in modules().items():
        imported = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
            for alias in node.names
        }
        if library in imported:
            users.add(name.split(".")[0])
            assert users <= homes, f"{name} imports {library}; only {sorted(homes)} may"
    assert bool(users) == bool(homes), f"{library} is imported nowhere"


def test_modules_and_functions_stay_small() -> None:
    assert len(modules()) > 100
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        assert len(text.splitlines()) <= MAX_MODULE_LINES, f"{path.name} has outgrown one module: make it a folder"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, f"{path.name}: {node.name} has {lines} lines"
                arguments = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
                count = len(arguments) - (arguments[:1] in (["self"], ["cls"]))
                assert count <= MAX_PARAMETERS, f"{path.name}: {node.name} takes {count} parameters: use a dataclass"


def test_the_door_lists_what_is_public() -> None:
    for name in moongate.__all__:
        assert getattr(moongate, name) is not None
    for name in modules():
        module = importlib.import_module(f"moongate.{name}".removesuffix(".__init__"))
        assert hasattr(module, "__all__"), f"{name} has no __all__"
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, public) for public in module.__all__)


def test_no_module_hides_a_function_of_the_door() -> None:
    """`moongate.train` was the module once anything else of that module had been used."""
    assert not set(moongate.__all__) & {name.split(".")[0] for name in modules()}


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, moongate, moongate.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
