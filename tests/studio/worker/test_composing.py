import json
from pathlib import Path

import pytest

from making import invented
from moongate.backbone import Backbone
from moongate.errors import BaseMismatchError
from moongate.merging import merge
from moongate.studio.worker import answer
from moongate.studio.worker.bench import Bench, Setup


@pytest.fixture
def bench(tiny_folder: Path, tmp_path: Path) -> Bench:
    return Bench(Setup(model=str(tiny_folder), device="cpu", cache=str(tmp_path / "cache")))


@pytest.fixture
def files(tiny_folder: Path, tmp_path: Path) -> list[str]:
    base = Backbone.load(tiny_folder, device="cpu")
    return [
        str(invented(base, subject, seed=seed).save(tmp_path / f"{seed}.safetensors"))
        for seed, subject in enumerate([("<one>", "bear"), ("<two>", "cat")])
    ]


def test_the_report_is_that_of_a_merge(bench: Bench, files: list[str]) -> None:
    found = answer(bench, "merge_report", {"concepts": [[files[0], 1.0], [files[1], 0.5]]})
    concepts = [bench.imported(file).concept for file in files]
    own = merge(bench.backbone(), [concepts[0], concepts[1].scaled(0.5)]).report
    assert found["shares"] == {fit.words: fit.share_kept for fit in own.subjects}
    assert (found["lost"], found["drift"], found["rank"]) == (own.predicted_to_lose, own.drift, own.rank)
    assert found["rows"][0][0] == "<one> bear"
    levels = {cell[1] for row in found["rows"] for cell in row if not isinstance(cell, str)}
    assert levels <= {"good", "fair", "bad"}
    assert json.loads(json.dumps(found)) == found
    assert list(Path(str(bench.setup.cache)).rglob("*.safetensors"))


def test_concepts_that_say_different_things_of_one_word_conflict(
    bench: Bench, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Backbone.load(tiny_folder, device="cpu")
    files = [str(invented(base, (None, "bear"), seed=n).save(tmp_path / f"same-{n}.safetensors")) for n in range(2)]
    found = answer(bench, "merge_report", {"concepts": [[file, 1.0] for file in files]})
    (conflict,) = found["conflicts"]
    assert "Give one of them a token" in conflict["advice"]
    assert "bad" in {level for _, level in found["sentences"]}


def test_concepts_of_another_model_are_refused(
    bench: Bench, files: list[str], other_folder: Path, tmp_path: Path
) -> None:
    other = invented(Backbone.load(other_folder, device="cpu"), ("<two>", "cat")).save(tmp_path / "other.safetensors")
    with pytest.raises(BaseMismatchError):
        answer(bench, "merge_report", {"concepts": [[files[0], 1.0], [str(other), 1.0]]})
