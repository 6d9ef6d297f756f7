"""What the README shows must work as it is written."""

import re
import shlex
from pathlib import Path

import pytest

from moongate import cli
from moongate.cli.subjects import lessons_from_file
from moongate.concept import Concept

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("python")
    assert "steps=250" in example
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("steps=250", "steps=2"), "README.md", "exec"), {})
    assert Concept.load("bear.safetensors").subjects[0].token == "<bear>"
    assert (tmp_path / "bears.png").stat().st_size > 10_000


def test_every_command_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for command in (getattr(cli, name) for name in cli.__all__ if name != "main"):
        monkeypatch.setattr(command, "__call__", lambda self, _console: called.append(self))
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("moongate ")]
    for line in lines:
        cli.main(shlex.split(line)[1:])
    assert len(called) == len(lines) >= 3


def test_the_file_of_concepts_is_understood(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    (tmp_path / "concepts.yaml").write_text(example)
    first, second = lessons_from_file(tmp_path / "concepts.yaml")
    assert (first.words, second.words) == ("<bear> teddy bear", "<chair> armchair")
    assert second.regularization == str(tmp_path / "other-chairs")


def test_the_make_targets_and_files_it_names_exist() -> None:
    root = Path(__file__).parents[1]
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / link).exists(), link
