"""The house rules: imports go downwards, modules and functions stay small, the door lists what is public."""

import ast
import subprocess
import sys
from collections.abc import Container
from functools import cache
from pathlib import Path

import pytest

import moongate

SOURCE = Path(moongate.__file__).parent
LAYERS = [
    {"errors", "pocket"},
    {"backbone.fingerprint", "backbone.loading", "backbone.text"},
    {"backbone", "closed_form", "extras"},
    {"concept", "embedding", "pictures", "pocket.clip", "rare_tokens"},
    {"method", "data", "runs", "neutral", "merge_report", "pages", "compression", "sources", "attention"}
    | {"evaluation.features", "evaluation.metrics", "evaluation.prompts"},
    {"training", "sampling", "merging", "collection", "pocket.judge"},
    {"pocket.demo", "pocket.recogniser", "merge_page", "retrieval", "interop.names", "interop.content"}
    | {"analysis", "evaluation.benchmark"},
    {"pocket.compose_demo", "interop.format", "interop.products", "analysis_page", "evaluation"},
    {"interop.tokens"},
    {"interop.full_weights", "interop.lora", "interop.publishing"},
    {"interop.formats"},
    {"interop.reading", "interop.writing", "interop.__main__"},
    {"interop"},
    {"cli.terminal", "cli.lessons"},
    {"cli.compose", "cli.regularisation"},
    {"cli.analyze", "cli.convert", "cli.demo", "cli.evaluate", "cli.generate", "cli.retrieve", "cli.train"},
    {"cli"},
]
"""From the bottom up; a module may import what lies below it. `pocket` is the door to the embedded data."""
RECIPE = ("pocket.corpus", "pocket.fitting", "pocket.pieces", "pocket.pretrain", "pocket.report")
"""What made the weights and measures them; in no layer, because nothing imports it."""
ONLY_IN = {
    "diffusers": {"backbone", "sampling", "pocket"},
    "transformers": {"backbone", "embedding", "evaluation", "pocket"},
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


def layer_of(name: str) -> int | None:
    return next((index for index, layer in enumerate(LAYERS) if name in layer), None)


def house_imports(name: str, tree: ast.Module, names: Container[str]) -> list[str]:
    """Names of the modules of the house that `name` imports, lazily or not."""
    parts = name.split(".")
    package = parts if (SOURCE.joinpath(*parts) / "__init__.py").exists() else parts[:-1]
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                parts = [*base, *([node.module] if node.module else [alias.name])]
                imported.append(".".join(parts if ".".join(parts) in names else parts[:-1]))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moongate."):
            imported.append(node.module.removeprefix("moongate."))
    return imported


def test_every_module_has_a_place() -> None:
    placed = {name for name in modules() if layer_of(name) is not None or name.startswith(RECIPE)}
    homeless = sorted(set(modules()) - placed - {"__init__"})
    assert not homeless, f"{homeless} are in no layer: add each to LAYERS in {__file__} and to ARCHITECTURE.md"


def test_imports_go_downwards() -> None:
    everything = modules()
    for name, tree in everything.items():
        here = layer_of(name)
        if here is None:
            continue
        for imported in house_imports(name, tree, everything):
            there = layer_of(imported)
            assert there is not None, f"{name} imports {imported or 'the package'}, which is in no layer"
            allowed = there < here or {name, imported} <= {"backbone", "pocket", "errors"}
            assert allowed, (
                f"{name} (layer {here}) imports {imported} (layer {there}). Imports only go down: move what both "
                "need into a lower module, or hand it in as an argument."
            )


def test_the_library_never_imports_the_recipe_that_made_pocket() -> None:
    everything = modules()
    for name, tree in everything.items():
        if not name.startswith(RECIPE):
            used = [i for i in house_imports(name, tree, everything) if i.startswith(RECIPE)]
            assert not used, f"{name} imports {used}"


@pytest.mark.parametrize(("library", "homes"), ONLY_IN.items())
def test_heavy_libraries_have_one_home(library: str, homes: set[str]) -> None:
    for name, tree in modules().items():
        imported = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
            for alias in node.names
        }
        if library in imported:
            assert name.split(".")[0] in homes, f"{name} imports {library}; only {sorted(homes)} may"


def test_modules_and_functions_stay_small() -> None:
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
        if layer_of(name) is not None:
            module = __import__(f"moongate.{name}", fromlist=["__all__"])
            assert hasattr(module, "__all__"), f"{name} has no __all__"
            assert len(set(module.__all__)) == len(module.__all__)
            assert all(hasattr(module, public) for public in module.__all__)


def test_no_module_hides_a_function_of_the_door() -> None:
    """`moongate.train` was the module once anything else of that module had been used."""
    assert not set(moongate.__all__) & {name.split(".")[0] for name in modules()}


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, moongate, moongate.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
