from pathlib import Path

import pytest

from making import invented, make_concept
from moongate import interop
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.errors import ConceptFileError, OptionError
from moongate.studio.worker import answer
from moongate.studio.worker.bench import Bench, Setup


@pytest.fixture
def bench(tiny_folder: Path) -> Bench:
    return Bench(Setup(model=str(tiny_folder), device="cpu"))


@pytest.fixture
def concept(tiny_folder: Path) -> Concept:
    return make_concept(Backbone.load(tiny_folder, device="cpu"))


@pytest.mark.parametrize("to", interop.FORMATS)
def test_a_concept_comes_back_from_every_format(to: str, bench: Bench, concept: Concept, tmp_path: Path) -> None:
    concept.save(tmp_path / "bear.safetensors")
    ending = "" if interop.FORMATS[to].is_folder else {"compvis": ".ckpt", "adobe": ".bin"}.get(to, ".safetensors")
    out = str(tmp_path / f"out{ending}")
    for _ in range(2):  # an earlier export is replaced
        written = answer(bench, "export_concept", {"file": str(tmp_path / "bear.safetensors"), "to": to, "out": out})
    assert written["files"]
    assert all(Path(file).is_file() for file in written["files"])
    found = answer(
        bench,
        "import_concept",
        {"source": out, "out": str(tmp_path / "again.safetensors"), "tokens": ["<bear>"], "categories": ["bear"]},
    )
    again = Concept.load(tmp_path / "again.safetensors")
    assert (list(again.tokens), again.subjects[0].category) == (["<bear>"], "bear")
    assert found["format"] == interop.FORMATS[to].title


def test_notes_say_what_a_file_does_not_hold(bench: Bench, tiny_folder: Path, tmp_path: Path) -> None:
    dense = invented(Backbone.load(tiny_folder, device="cpu"), ("<bear>", "bear")).save(tmp_path / "bear.safetensors")
    found = answer(bench, "export_concept", {"file": str(dense), "to": "embedding", "out": str(tmp_path / "e")})
    assert found["notes"]


def test_a_file_that_is_no_concept_leaves_nothing(bench: Bench, concept: Concept, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    out = tmp_path / "out.safetensors"
    with pytest.raises(ConceptFileError):
        answer(bench, "import_concept", {"source": str(tmp_path / "x.safetensors"), "out": str(out)})
    assert not out.exists()
    before = concept.save(out).read_bytes()
    with pytest.raises(OptionError, match="exists already"):
        answer(bench, "import_concept", {"source": str(out), "out": str(out)})
    assert out.read_bytes() == before
