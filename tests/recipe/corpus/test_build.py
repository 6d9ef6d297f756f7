import json
from pathlib import Path

import numpy as np
import pytest

from moongate.errors import CorpusError, MissingLibrary, OptionError
from recipe.corpus import Corpus, packages
from recipe.corpus import build as builder
from recipe.corpus.build import CorpusOptions, build
from recipe.corpus.catalog import Object
from recipe.corpus.places import PROCEDURAL

PLACES = tuple(PROCEDURAL)


def cube(key: str, category: str, kind: str = "drawing") -> Object:
    views = [np.full((8, 8, 4), 255, dtype=np.uint8)] * 3
    return Object(key=key, category=category, name="toy", kind=kind, views=views)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CorpusOptions:
    """A corpus of two categories for which nothing is downloaded or rendered."""
    monkeypatch.setattr(builder, "LIBRARIES", ())
    monkeypatch.setattr(packages, "ALL", ())
    monkeypatch.setattr(builder, "PLACES", PLACES)
    monkeypatch.setattr("recipe.corpus.scenes.PLACES", PLACES)
    objects = [cube("x/ball", "ball"), cube("x/chair", "chair"), cube("fxemoji/owl", "owl")]
    monkeypatch.setattr(builder, "_write_cutouts", lambda archives, path, options: path.write_bytes(b""))
    monkeypatch.setattr(builder, "is_held_out", lambda item: item.category == "owl")
    monkeypatch.setattr(builder, "is_example", lambda item: item.category == "owl")
    monkeypatch.setattr(builder, "read_objects", lambda path: objects)
    monkeypatch.setattr(builder, "_read_panoramas", lambda archives: {})
    counts = {"pictures": 70, "held_out": 10, "pool": 3, "training_views": 3, "evaluation_views": 2}
    return CorpusOptions(out=tmp_path / "corpus", workers=1, **counts)


def test_a_stopped_build_goes_on_to_the_same_corpus(
    options: CorpusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(options)
    whole = Corpus(options.out)
    assert (whole.training, len(whole.scenes)) == (70, 80)
    stopped = CorpusOptions(**(vars(options) | {"out": tmp_path / "stopped"}))
    build(stopped)
    lines = (stopped.out / "scenes.jsonl").read_text().splitlines(keepends=True)
    (stopped.out / "scenes.jsonl.partial").write_text("".join(lines[:64]) + lines[64][:10])
    (stopped.out / "scenes.jsonl").unlink()
    pictures = np.load(stopped.out / "pictures.npy", mmap_mode="r+")
    pictures[64:] = 0
    pictures.flush()
    with pytest.raises(CorpusError, match=r"not a finished corpus: it has no scenes.jsonl"):
        Corpus(stopped.out)
    build(stopped)
    resumed = Corpus(stopped.out)
    assert resumed.scenes == whole.scenes
    assert np.array_equal(resumed.pictures, whole.pictures)
    monkeypatch.setattr(builder, "_write_pictures", lambda *_: pytest.fail("finished pictures are painted again"))
    build(stopped)


def test_captions_of_training_pictures_name_the_place(options: CorpusOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the place, the new word learns the places of the pictures before it learns the object."""
    build(options)
    folder = options.out / "concepts" / "drawn-owl"
    captions = [path.read_text() for path in sorted((folder / "train").glob("*.txt"))]
    places = [caption.removeprefix("drawing of a {} ").rstrip("\n") for caption in captions]
    assert len(set(places)) == 3
    assert set(places) <= set(PLACES)
    assert len(list((folder / "evaluation").glob("*.webp"))) == 2
    assert not list((folder / "evaluation").glob("*.txt"))
    assert json.loads((folder / "concept.json").read_text())["style"] == "drawing"


def test_the_pool_shows_seen_objects_only(options: CorpusOptions) -> None:
    build(options)
    rows = [json.loads(line) for line in (options.out / "pool" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["0000.webp", "0001.webp", "0002.webp"]
    assert {name for row in rows for name in row["categories"]} <= {"ball", "chair"}


def test_a_folder_begun_with_other_options_is_refused(options: CorpusOptions) -> None:
    build(options)
    with pytest.raises(CorpusError, match=r"begun with other options: seed 0, now 1\. Choose another --out"):
        build(CorpusOptions(**(vars(options) | {"seed": 1})))
    (options.out / "corpus.json").unlink()
    with pytest.raises(CorpusError, match=r"no corpus.json, so their options are unknown"):
        build(options)


def test_missing_libraries_are_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(MissingLibrary, match=r"pip install '\.\[corpus\]'"):
        build(CorpusOptions(out=tmp_path / "corpus"))
    assert not (tmp_path / "corpus").exists()


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(OptionError, match=r"pool is 0; it must be at least 1"):
        CorpusOptions(pool=0)


def test_a_corpus_whose_captions_do_not_match_its_pictures_is_refused(options: CorpusOptions) -> None:
    build(options)
    lines = (options.out / "scenes.jsonl").read_text().splitlines()
    (options.out / "scenes.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(CorpusError, match=r"80 pictures but 79 captions"):
        Corpus(options.out)
