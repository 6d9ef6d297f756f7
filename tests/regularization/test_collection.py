import sys
from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from making import make_clip
from moongate.backbone import Backbone
from moongate.errors import CollectionError, MissingLibrary, OptionError
from moongate.evaluation.networks.clip import Clip
from moongate.files import exclusive
from moongate.regularization import collection as module
from moongate.regularization.collection import Collection, Hit, nearest
from moongate.regularization.sources import Record, Skipped

WORDS = ("dog", "cat", "chair", "bear", "beach", "red dog", "red cat", "very small chair", "teddy bear", "photo")


def records(count: int = 60) -> list[Record]:
    """Captions of which each differs from the others."""
    captions = [f"{first} in {second} {place}" for first in WORDS for second in WORDS for place in WORDS]
    return [Record(caption=c, picture=f"/{n}.png", key=f"{n:024x}") for n, c in enumerate(captions[:count])]


@pytest.fixture
def encoder(tiny: Backbone) -> Clip:
    return Clip.of_backbone(tiny)


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "collection")


def build(given: list[Record], encoder: Clip, place: str, **options: object) -> Collection:
    return Collection.index(given, encoder, place=place, skipped=Skipped(), **options)


def keys(hits: Iterator[Hit]) -> list[str]:
    return [hit.record.key for hit in hits]


def test_a_search_gives_every_record_by_falling_cosine(
    encoder: Clip, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_HITS", 3)  # so that it looks up several times
    given = records()
    build(given, encoder, place)
    query = encoder.captions(["red dog"])[0]
    found = list(Collection.open(place).search(query))
    expected = {
        r.key: float(v @ query) for r, v in zip(given, encoder.captions([r.caption for r in given]), strict=True)
    }
    assert len(found) == len(given)
    assert [hit.similarity for hit in found] == sorted((hit.similarity for hit in found), reverse=True)
    for hit in found:
        assert hit.similarity == pytest.approx(expected[hit.record.key], abs=1e-5)
    assert found[0].record == next(record for record in given if record.key == found[0].record.key)


def test_a_search_without_an_index_finds_the_same(encoder: Clip, place: str) -> None:
    query = encoder.captions(["teddy bear"])[0]
    indexed = list(build(records(), encoder, place).search(query))
    plain = list(nearest(records(), query, encoder))
    np.testing.assert_allclose([h.similarity for h in plain], [h.similarity for h in indexed], atol=1e-5)
    assert keys(iter(plain[:5])) == keys(iter(indexed[:5]))


def test_a_stopped_run_continues_without_embedding_again(
    encoder: Clip, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPTIONS_AT_ONCE", 16)

    def stopping() -> Iterator[Record]:
        yield from records()[:40]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(stopping(), encoder, place)
    embedded: list[str] = []
    counted = Clip.captions
    monkeypatch.setattr(Clip, "captions", lambda self, texts: embedded.extend(texts) or counted(self, texts))
    progress: list[int] = []
    collection = build(records(), encoder, place, on_progress=progress.append)
    assert len(collection) == 60
    assert sum(text in {r.caption for r in records()} for text in embedded) == 60 - 32
    assert progress == [16, 32, 48, 60]


def test_the_same_picture_twice_counts_once(encoder: Clip, place: str) -> None:
    assert len(build([*records(20), *records(30)], encoder, place)) == 30


def test_an_index_made_with_another_encoder_is_refused_by_name(
    encoder: Clip, other_folder: Path, tiny_folder: Path, place: str
) -> None:
    build(records(5), encoder, place)
    collection = Collection.open(place)
    collection.check(Clip.of_backbone(Backbone.load(tiny_folder, device="cpu")))
    other = Clip.of_backbone(Backbone.load(other_folder, device="cpu"))
    message = f"was made with the text encoder '{encoder.name}', not with '{other.name}'"
    with pytest.raises(CollectionError, match=message):
        collection.check(other)
    with pytest.raises(CollectionError, match=message):
        build(records(8), other, place)
    assert len(collection) == 5


def test_another_encoder_is_refused_before_the_source_is_read(encoder: Clip, other_folder: Path, place: str) -> None:
    build(records(5), encoder, place)
    read: list[Record] = []
    given = (read.append(record) or record for record in records())
    with pytest.raises(CollectionError, match="was made with the text encoder"):
        build(given, Clip.of_backbone(Backbone.load(other_folder, device="cpu")), place)
    assert len(read) == 1


def test_pictures_are_embedded_on_request_and_found_by_their_looks(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PICTURES_AT_ONCE", 2)  # so that the memory holds no more
    clip = Clip.load(str(make_clip(tmp_path / "clip", tiny)))
    given = []
    for number, color in enumerate(("red", "green", "blue")):
        Image.linear_gradient("L").convert("RGB").resize((40, 40)).rotate(90 * number).save(tmp_path / f"{color}.png")
        given.append(Record(caption=f"a {color}", picture=str(tmp_path / f"{color}.png"), key=color))
    (tmp_path / "broken.png").write_text("broken")
    given.append(Record(caption="broken", picture=str(tmp_path / "broken.png"), key="broken"))
    skipped = Skipped()
    collection = Collection.index(given, clip, place=str(tmp_path / "collection"), skipped=skipped, with_pictures=True)
    assert skipped.counts["pictures that cannot be read"] == 1
    vectors = clip.pictures([np.array(Image.open(record.picture)) for record in given[:3]])
    assert keys(collection.search(vectors[1], by="pictures"))[0] == "green"
    assert keys(collection.search(vectors[2], by="pictures"))[0] == "blue"
    assert collection.made_by_clip


def test_pictures_that_were_not_embedded_cannot_be_searched(encoder: Clip, place: str) -> None:
    collection = build(records(5), encoder, place)
    with pytest.raises(CollectionError, match="has no features of pictures"):
        next(collection.search(encoder.captions(["dog"])[0], by="pictures"))
    with pytest.raises(OptionError, match="has no image tower"):
        build(records(9), encoder, place, with_pictures=True)
    assert len(collection) == 5


def test_bytes_that_came_from_the_hub_are_kept_and_others_are_read_where_they_lie(
    encoder: Clip, place: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"on disk")
    here = Record(caption="a dog", picture=str(tmp_path / "a.png"), key="a")
    hub = Record(caption="a cat", picture="hub:someone/set#7", key="b", data=b"from the hub")
    build([here, hub], encoder, place)
    collection = Collection.open(place)
    found = {hit.record.key: hit.record for hit in collection.search(encoder.captions(["cat"])[0])}
    assert collection.read(found["a"]) == b"on disk"
    assert collection.read(found["b"]) == b"from the hub"


def test_a_large_collection_is_searched_through_a_vector_index(
    encoder: Clip, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VECTOR_INDEX_FROM", 500)
    given = records(1000)
    collection = build(given, encoder, place)
    assert collection._table.list_indices()
    query = encoder.captions(["red cat in chair"])[0]
    exact = encoder.captions([record.caption for record in given]) @ query
    found = [hit for hit, _ in zip(collection.search(query), range(20), strict=False)]
    assert found[0].similarity == pytest.approx(float(exact.max()), abs=1e-5)
    best = set(exact.argsort(descending=True)[:20].tolist())
    assert len({int(hit.record.key, 16) for hit in found} & best) >= 15


def test_nothing_to_index_and_no_collection_are_said(
    encoder: Clip, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CollectionError, match="Nothing of the source can be used: it is empty"):
        build([], encoder, place)
    skipped = Skipped()
    skipped.add("0.txt", "captions without a picture")
    with pytest.raises(CollectionError, match="can be used: 1 captions without a picture, such as 0.txt"):
        Collection.index([], encoder, place=place, skipped=skipped)
    assert not Path(place).exists()
    with pytest.raises(CollectionError, match="There is no collection in .*elsewhere. Make one with"):
        Collection.open(str(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingLibrary, match=r"needs the library lancedb.*pip install '\.\[retrieve\]'"):
        Collection.open(place)


def test_a_collection_that_another_process_writes_is_left_alone(encoder: Clip, place: str) -> None:
    build(records(3), encoder, place)
    with exclusive(Path(place)), pytest.raises(OptionError, match=r"collection is in use by process \d+"):
        build(records(6), encoder, place)
    assert len(Collection.open(place)) == 3


def test_a_doubled_collection_is_mended_by_the_next_run(encoder: Clip, place: str) -> None:
    given = records(30)
    collection = build(given[:20], encoder, place)
    collection._table.add(collection._table.to_arrow().slice(0, 12))
    assert len(collection) == 32
    mended = build(given, encoder, place)
    rows = mended._table.to_arrow()["key"].to_pylist()
    assert sorted(rows) == sorted(record.key for record in given)


def test_a_search_of_a_doubled_collection_gives_each_record_once_and_ends(encoder: Clip, place: str) -> None:
    given = records(20)
    collection = build(given, encoder, place)
    collection._table.add(collection._table.to_arrow().slice(0, 12))
    found = keys(Collection.open(place).search(encoder.captions(["red dog"])[0]))
    assert sorted(found) == sorted(record.key for record in given)


def test_an_addition_leaves_one_version_on_the_disk_and_earlier_readers_read_it(
    encoder: Clip, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_HITS", 3)
    given = records(30)
    build(given[:20], encoder, place)
    reader = Collection.open(place)
    query = encoder.captions(["red dog"])[0]
    begun = reader.search(query)
    first = next(begun)
    collection = build(given, encoder, place)
    assert len(collection._table.list_versions()) == 1
    assert len(list(Path(place).rglob("data/*.lance"))) == 1
    assert len({first.record.key, *keys(begun)}) >= 20
    assert sorted(keys(reader.search(query))) == sorted(record.key for record in given)


def test_a_full_disk_while_indexing_is_said_and_the_next_run_continues(
    encoder: Clip, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CAPTIONS_AT_ONCE", 4)
    add, calls = Collection._add, []

    def full(self: Collection, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 2:
            raise RuntimeError("lance error: LanceError(IO): No space left on device (os error 28)")
        add(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Collection, "_add", full)
    with pytest.raises(CollectionError, match=r"after 8 captions: .*No space left.* run the same command again"):
        build(records(12), encoder, place)
    monkeypatch.setattr(Collection, "_add", add)
    assert len(Collection.open(place)) == 8
    assert len(build(records(12), encoder, place)) == 12


@pytest.mark.parametrize("facts", [b"", b"{}", b"[1]", b'{"encoder": "x", "clip": 1, "pictures": 0, "probe": "x"}'])
def test_a_table_with_other_facts_is_no_collection(facts: bytes, encoder: Clip, place: str) -> None:
    schema = pa.schema([("key", pa.string())], metadata={"moongate": facts})
    lancedb.connect(place).create_table("captions", schema=schema)
    with pytest.raises(CollectionError, match="was not made by `moongate retrieve index`"):
        Collection.open(place)
    with pytest.raises(CollectionError, match="was not made by `moongate retrieve index`"):
        build(records(4), encoder, place)


@pytest.mark.parametrize("part", ["_versions", "data"])
def test_a_damaged_collection_is_said_by_all_that_read_it(part: str, encoder: Clip, place: str) -> None:
    build(records(4), encoder, place)
    for file in (Path(place) / "captions.lance" / part).iterdir():
        file.write_bytes(b"damaged")
    for read in (
        lambda: list(Collection.open(place).search(encoder.captions(["dog"])[0])),
        lambda: build(records(8), encoder, place),
    ):
        with pytest.raises(CollectionError, match=r"collection cannot be read|collection could not be written after 0"):
            read()
