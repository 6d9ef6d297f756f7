import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from moongate.errors import CorpusError
from recipe.corpus import build as builder
from recipe.corpus import packages
from recipe.corpus import scenes as compose
from recipe.corpus.places import PROCEDURAL

FOLDER = Path(compose.__file__).parent
CATALOG = json.loads((FOLDER / "catalog.json").read_text())
SPLIT = json.loads((FOLDER / "split.json").read_text())


def tarball(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_debian_and_npm_archives_are_unpacked_without_their_tools(tmp_path: Path) -> None:
    files = {"usr/share/a.txt": b"first", "usr/share/b.txt": b"second"}
    (tmp_path / "npm.tgz").write_bytes(tarball(files, "w:gz"))

    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    parts = [member("debian-binary", b"2.0"), member("data.tar.xz", tarball(files, "w:xz"))]
    (tmp_path / "debian.deb").write_bytes(b"!<arch>\n" + b"".join(parts))
    for archive in ("npm.tgz", "debian.deb"):
        assert dict(packages.members(tmp_path / archive)) == files
    (tmp_path / "other.deb").write_bytes(b"!<arch>\n" + parts[0])
    with pytest.raises(CorpusError, match=r"holds no data.tar"):
        list(packages.members(tmp_path / "other.deb"))


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    package = packages.PANORAMAS
    (tmp_path / package.archive).write_bytes(b"something else")
    with pytest.raises(CorpusError, match=r"is not the pinned @pmndrs/assets 1.7.0: SHA-256"):
        packages.fetch(package, tmp_path)


def test_the_split_holds_out_whole_objects_that_exist() -> None:
    for category, models in SPLIT["models"].items():
        assert set(models) <= set(CATALOG[category]["models"])
    assert set(SPLIT["drawing_families"]) <= set(CATALOG)
    assert set(SPLIT["drawing_families"].values()) <= {*packages.DRAWN_FAMILIES, "fluent-emoji-3d"}
    held_out = [model for models in SPLIT["models"].values() for model in models]
    assert len(held_out) == len(set(held_out)) >= 17


def test_every_category_is_still_seen_after_the_split() -> None:
    for category, sources in CATALOG.items():
        seen = set(sources["models"]) - set(SPLIT["models"].get(category, []))
        assert seen or sources["drawings"], category


def test_a_scene_is_what_its_caption_says_and_follows_from_its_seed() -> None:
    red = np.zeros((40, 40, 4), dtype=np.uint8)
    red[5:35, 5:35] = (220, 20, 20, 255)
    thing = compose.Object(key="a", category="ball", name="ball", kind="photo", views=[red])
    other = compose.Object(key="b", category="chair", name="chair", kind="photo", views=[red])
    for seed, place in enumerate([*PROCEDURAL, "on a blue background"] * 3):
        scenes = [
            compose.make_scene([thing, other], rng=np.random.default_rng(seed), panoramas={}, place=place)
            for _ in range(2)
        ]
        assert scenes[0].caption == scenes[1].caption
        assert np.array_equal(scenes[0].picture, scenes[1].picture)
        assert scenes[0].picture.shape == (128, 128, 3)
        assert scenes[0].style in scenes[0].caption
        assert scenes[0].place in scenes[0].caption
        assert set(scenes[0].categories) == {"ball", "chair"}


def test_pictures_to_learn_from_say_in_a_caption_where_the_thing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without, the new word learned the places of the pictures before it learned the thing."""
    monkeypatch.setattr(builder, "PLACES", tuple(PROCEDURAL))
    asked: list[str] = []
    make_scene = compose.make_scene

    def remembered(*arguments: object, place: str, **options: object) -> compose.Scene:
        asked.append(place)
        return make_scene(*arguments, place=place, **options)

    monkeypatch.setattr(builder, "make_scene", remembered)
    thing = compose.Object(
        key="a/ball", category="ball", name="toy", kind="drawing", views=[np.full((8, 8, 4), 255, dtype=np.uint8)]
    )
    options = builder.CorpusOptions(out=tmp_path, training_views=3, evaluation_views=2)
    builder._write_concepts([thing], {}, options)
    folder = tmp_path / "concepts" / "drawn-ball"
    captions = [path.read_text() for path in sorted((folder / "train").glob("*.txt"))]
    assert captions == [f"drawing of a {{}} {place}\n" for place in asked[:3]]
    assert len(asked) == 5
    assert not list((folder / "evaluation").glob("*.txt"))
    assert json.loads((folder / "concept.json").read_text())["style"] == "drawing"
