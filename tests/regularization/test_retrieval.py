import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moongate.backbone import Backbone
from moongate.data import Regularization
from moongate.data.pictures import read_picture
from moongate.errors import CollectionError, OptionError, PictureError
from moongate.evaluation.networks.clip import Clip
from moongate.regularization.collection import Collection, Hit
from moongate.regularization.retrieval import RetrieveOptions, already_retrieved, retrieve, write_nearest
from moongate.regularization.sources import Record, Skipped

FACTS = {"query": "photo of a dog", "collection": "here"}


def noise(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)


def stored(record: Record) -> bytes:
    """Return a picture of its own for each number; "same" looks like 0, and "gone" is not there."""
    if record.picture == "gone":
        raise PictureError("gone cannot be read (HTTP Error 404).")
    if record.picture == "torn":
        return b"no picture"
    buffer = io.BytesIO()
    if record.picture == "same":
        noise(0, (50, 33)).save(buffer, "JPEG", quality=70)
    else:
        noise(int(record.picture)).save(buffer, "PNG")
    return buffer.getvalue()


def hits(pictures: str, *, step: float = 0.05) -> Iterator[Hit]:
    """The similarities fall from 0.95 on."""
    for index, picture in enumerate(pictures.split()):
        record = Record(caption=f"dog number {picture}", picture=picture, key=picture, license="CC0")
        yield Hit(record=record, similarity=0.95 - index * step)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_the_nearest_above_the_threshold_are_written_with_all_that_is_known(tmp_path: Path) -> None:
    out = tmp_path / "reg"
    options = RetrieveOptions(threshold=0.7, count=3, side_px=20)
    found = write_nearest(hits("0 1 2 3 4 5"), stored, facts=FACTS, out=out, options=options)
    assert [row["caption"] for row in rows(out)] == ["dog number 0", "dog number 1", "dog number 2"]
    first = {"source": "0", "license": "CC0", "similarity": 0.95, "file_name": "0000.png", "caption": "dog number 0"}
    assert rows(out)[0] == first
    assert read_picture(out / "0000.png").shape == (20, 30, 3)  # its shorter side, and not squashed
    assert str(found) == "3 pictures with similarities from 0.950 to 0.850."
    read = Regularization.load(out, category="dog")
    assert read.captions == ("dog number 0", "dog number 1", "dog number 2")


def test_too_few_are_said_with_the_threshold_that_would_have_given_enough(tmp_path: Path) -> None:
    options = RetrieveOptions(threshold=0.82, count=5)
    found = write_nearest(hits("0 1 2 3 4 5 6"), stored, facts=FACTS, out=tmp_path / "reg", options=options)
    assert (found.count, found.enough_at) == (3, 0.75)
    assert "a threshold of 0.750 would have given 5" in str(found)
    again = RetrieveOptions(threshold=found.enough_at, count=5)
    assert write_nearest(hits("0 1 2 3 4 5 6"), stored, facts=FACTS, out=tmp_path / "reg", options=again).count == 5


def test_more_than_the_collection_has_is_said(tmp_path: Path) -> None:
    options = RetrieveOptions(threshold=0, count=9)
    found = write_nearest(hits("0 1"), stored, facts=FACTS, out=tmp_path / "reg", options=options)
    assert "the collection does not have 9" in str(found)


def test_the_threshold_is_passed_on_request_alone(tmp_path: Path) -> None:
    options = RetrieveOptions(threshold=0.88, count=4, tops_up=True)
    found = write_nearest(hits("0 1 2 3 4 5"), stored, facts=FACTS, out=tmp_path / "reg", options=options)
    assert found.count == 4
    assert found.lowest == pytest.approx(0.8)


def test_pictures_alike_gone_or_torn_are_skipped_counted_and_named(tmp_path: Path) -> None:
    options = RetrieveOptions(threshold=0, count=3)
    out = tmp_path / "reg"
    found = write_nearest(hits("0 gone same torn 1 2"), stored, facts=FACTS, out=out, options=options)
    assert [row["source"] for row in rows(out)] == ["0", "1", "2"]
    assert found.skipped.counts == {"pictures that cannot be read": 2, "near-identical pictures": 1}
    manifest = json.loads((out / "retrieval.json").read_text())
    assert manifest["skipped_names"][0] == ["gone cannot be read (HTTP Error 404).", "pictures that cannot be read"]
    assert any("torn is not a picture" in name for name, _ in manifest["skipped_names"])


def test_nothing_left_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "reg"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for pictures, options, message in (
        ("0 1 2", RetrieveOptions(threshold=0.99, count=2), "reaches the similarity 0.99; the nearest has 0.950. Take "
         "--threshold 0.(899|900) for 2 pictures"),
        ("0", RetrieveOptions(threshold=0.99, count=2), "Lower --threshold"),
        ("gone torn", RetrieveOptions(threshold=0), "used: 2 pictures that cannot be read, such as gone"),
        ("", RetrieveOptions(threshold=0), "The collection is empty"),
    ):  # fmt: skip
        with pytest.raises(CollectionError, match=message):
            write_nearest(hits(pictures), stored, facts=FACTS, out=out, options=options)
    assert [path.name for path in tmp_path.rglob("*")] == ["reg", "mine.txt"]


def test_no_more_pictures_are_read_than_are_wanted(tmp_path: Path) -> None:
    read: list[str] = []

    def counted(record: Record) -> bytes:
        read.append(record.picture)
        return stored(record)

    many = " ".join(map(str, range(100)))
    write_nearest(
        hits(many, step=0.001), counted, facts=FACTS, out=tmp_path / "r", options=RetrieveOptions(threshold=0, count=3)
    )
    assert len(read) <= 16


def test_what_was_retrieved_from_a_collection_is_known_again(tiny: Backbone, tmp_path: Path) -> None:
    clip, records = Clip.of_backbone(tiny), []
    for number, caption in enumerate(("photo of a dog", "a red chair", "a dog on the beach")):
        noise(number).save(tmp_path / f"{number}.png")
        records.append(Record(caption=caption, picture=str(tmp_path / f"{number}.png"), key=str(number)))
    collection = Collection.index(records, clip, place=str(tmp_path / "collection"), skipped=Skipped())
    setup: dict[str, Any] = {"clip": clip, "collection": collection, "out": tmp_path / "reg"}
    options = RetrieveOptions(threshold=-1, count=2)
    assert not already_retrieved("photo of a dog", **setup, options=options)
    progress: list[int] = []
    retrieve("photo of a dog", **setup, options=options, on_progress=progress.append)
    assert progress == [1, 2]
    assert rows(tmp_path / "reg")[0]["caption"] == "photo of a dog"
    manifest = json.loads((tmp_path / "reg" / "retrieval.json").read_text())
    assert (manifest["query"], manifest["collection"]) == ("photo of a dog", collection.place)
    assert already_retrieved("photo of a dog", **setup, options=options)
    assert not already_retrieved("photo of a dog", **setup, options=RetrieveOptions(threshold=-1, count=3))
    assert not already_retrieved("photo of a cat", **setup, options=options)
    assert not already_retrieved("photo of a dog", **{**setup, "collection": None}, options=options)


def test_the_pool_is_searched_without_a_collection(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool").mkdir()
    for number, caption in enumerate(("a cat", "photo of a dog")):
        noise(number).save(tmp_path / "pool" / f"{number}.png")
        (tmp_path / "pool" / f"{number}.txt").write_text(caption)
    monkeypatch.setattr("moongate.pocket.pool_folder", lambda: tmp_path / "pool")
    out, options = tmp_path / "reg", RetrieveOptions(threshold=-1, count=1)
    retrieve("photo of a dog", clip=Clip.of_backbone(tiny), collection=None, out=out, options=options)
    assert [row["caption"] for row in rows(out)] == ["photo of a dog"]
    assert json.loads((out / "retrieval.json").read_text())["collection"] == "pool"


def test_an_empty_collection_is_named_and_the_pool_is_not_searched_in_its_place(tiny: Backbone, tmp_path: Path) -> None:
    def stopped() -> Iterator[Record]:
        yield Record(caption="photo of a dog", picture="/0.png", key="0")
        raise KeyboardInterrupt

    clip, place = Clip.of_backbone(tiny), str(tmp_path / "collection")
    with pytest.raises(KeyboardInterrupt):
        Collection.index(stopped(), clip, place=place, skipped=Skipped())
    collection, options = Collection.open(place), RetrieveOptions(threshold=-1, count=1)
    with pytest.raises(CollectionError, match="The collection is empty. Index a source into it."):
        retrieve("photo of a dog", clip=clip, collection=collection, out=tmp_path / "reg", options=options)


def test_two_processes_that_write_one_folder_both_succeed(tmp_path: Path) -> None:
    out, options = tmp_path / "reg", RetrieveOptions(threshold=0, count=2)

    def write(number: int) -> int:
        return write_nearest(hits("0 1 2"), stored, facts={"by": str(number)}, out=out, options=options).count

    with ThreadPoolExecutor(4) as writers:
        assert set(writers.map(write, range(12))) == {2}
    assert len(rows(out)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["reg"]


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(OptionError, match="count is 0"):
        RetrieveOptions(threshold=0.85, count=0)
    with pytest.raises(OptionError, match="side_px is 0; a picture has at least 16"):
        RetrieveOptions(threshold=0.85, side_px=0)
    with pytest.raises(OptionError, match=r"threshold is 85; a similarity is between -1 and 1, such as 0\.85"):
        RetrieveOptions(threshold=85)
