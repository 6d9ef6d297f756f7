import re
from pathlib import Path

import pytest
import torch

from command_line import command, fails, run
from moongate.cli.options import cache_folder
from moongate.demo.pair import EXAMPLES, PairDemo, Strategy


def test_demo_is_single_unless_two_are_to_be_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, dict[str, object]]] = []

    def single(name: str, **options: object) -> Path:
        asked.append((name, options))
        return tmp_path / "single.html"

    def compose(names: tuple[str, ...], **options: object) -> PairDemo:
        asked.append((names, options))
        seen = torch.tensor([[True, True], [True, False], [False, False], [True, False]])
        strategy = Strategy(name="joint", seconds=7.0, pictures={}, seen=seen)
        return PairDemo(
            page=tmp_path / "both.html", head=("strategy", "both", "jar", "pot", "seconds"), strategies=(strategy,)
        )

    monkeypatch.setattr("moongate.demo.single.make_single_demo", single)
    monkeypatch.setattr("moongate.demo.pair.make_pair_demo", compose)
    run(command("demo"))
    run(command("demo", example="jar", steps=3, out="here"))
    run(command("demo single", example="pot"))
    run(command("demo compose"))
    run(command("demo compose", example=["jar", "teapot"], count=2))
    assert [name for name, _ in asked] == ["drawn-house", "jar", "pot", EXAMPLES, ("jar", "teapot")]
    assert [options["out"] for _, options in asked] == [
        Path(path) for path in ("demo", "here", "demo", "demo/compose", "demo/compose")
    ]
    assert (asked[1][1]["steps"], asked[4][1]["count"]) == (3, 2)
    assert {options["cache"] for _, options in asked} == {cache_folder()}
    printed = capsys.readouterr().out
    assert re.search(r"joint\W+25%\W+75%\W+25%\W+7", printed)
    assert "both.html" in printed
    assert "`moongate demo compose` takes two" in fails(capsys, command("demo", example=["jar", "teapot"]))
