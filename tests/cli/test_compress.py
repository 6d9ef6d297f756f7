from pathlib import Path

import pytest

from command_line import command, fails, run
from moongate.concept import Concept


def test_compress_writes_a_smaller_file(bear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.safetensors"
    run(command("compress", bear, energy=0.3, out=out))
    assert out.stat().st_size < bear.stat().st_size
    assert all(change.rank >= 1 for change in Concept.load(out).deltas.values())
    assert "was cut away" in capsys.readouterr().out
    spoilt = command("compress", bear, energy=2, out=tmp_path / "x.safetensors")
    assert "above 0 and at most 1" in fails(capsys, spoilt)


def test_energy_is_checked_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = command("compress", tmp_path / "nowhere.safetensors", energy=2, out=tmp_path / "x.safetensors")
    assert "above 0 and at most 1" in fails(capsys, spoilt)


def test_the_size_before_is_told_when_the_file_is_replaced(bear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = f"{bear.stat().st_size / 1e3:.1f} kB became "
    run(command("compress", bear, energy=0.3, out=bear, overwrite=True))
    assert before in " ".join(capsys.readouterr().out.split())
