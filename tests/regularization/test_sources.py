import io
import json
import os
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moongate.errors import CollectionError, MissingLibrary, MoongateWarning, PictureError
from moongate.regularization import reading
from moongate.regularization.reading import read_bytes
from moongate.regularization.sources import Record, Skipped, read_captions, read_source

CAPTIONS = ("a red dog", "a blue cat", "a green chair")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def read(source: object) -> tuple[list[Record], Skipped]:
    skipped = Skipped()
    return list(read_source(str(source), skipped)), skipped


def check(source: object) -> tuple[list[Record], Skipped]:
    """A source gives the three captioned pictures with their bytes, and names one caption without a picture."""
    records, skipped = read(source)
    assert [record.caption for record in records] == list(CAPTIONS)
    assert [read_bytes(record.picture) for record in records] == [png(number) for number in range(3)]
    assert len({record.key for record in records}) == 3
    assert skipped.counts["captions without a picture"] == 1
    return records, skipped


def write_files(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def write_shard(path: Path) -> Path:
    with tarfile.open(path, "w") as shard:
        add(shard, "part/0.png", png(0))
        add(shard, "part/0.txt", CAPTIONS[0].encode())
        add(shard, "part/lost.txt", b"a picture that was never fetched")
        for number in (1, 2):
            add(shard, f"part/{number}.json", json.dumps({"caption": CAPTIONS[number], "license": "CC0"}).encode())
            add(shard, f"part/{number}.png", png(number))
    return path


def test_a_folder_with_text_beside_each_picture(tmp_path: Path) -> None:
    write_files(tmp_path)
    for number, caption in enumerate(CAPTIONS):
        (tmp_path / f"{number}.txt").write_text(f" {caption}\n")
    (tmp_path / "lost.txt").write_text("a picture that is gone")
    (tmp_path / "silent.png").write_bytes(png(7))
    _, skipped = check(tmp_path)
    assert skipped.counts["pictures without a caption"] == 1
    assert (str(tmp_path / "silent.png"), "pictures without a caption") in skipped.names


def test_listings_as_json_lines_and_csv(tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": f"{n}.png", "text": c, "license": "CC0"}) for n, c in enumerate(CAPTIONS)]
    folder = write_files(tmp_path / "jsonl")
    broken = ['{"file_name": "gone.png", "text": "gone"}', '{"file_name": ', ""]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, *broken]))
    records, skipped = check(folder)
    assert {record.license for record in records} == {"CC0"}
    assert skipped.counts["lines that are not JSON objects"] == 1
    assert any("metadata.jsonl, line 5" in name for name, _ in skipped.names)
    folder = write_files(tmp_path / "csv")
    rows = [f'{n}.png,"{caption}"' for n, caption in enumerate(CAPTIONS)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,caption", *rows, "gone.png,gone"]))
    check(folder)


def test_a_listing_that_excel_wrote_is_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "csv")
    rows = [f'{n}.png,"{caption}"' for n, caption in enumerate(CAPTIONS)]
    (folder / "metadata.csv").write_text("\r\n".join(["file_name,caption", *rows, "gone.png,gone"]), "utf-8-sig")
    check(folder)


def test_rows_that_cannot_name_a_file_are_counted_and_the_others_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "jsonl")
    names = ("0.png", "x" * 5000, "a\0b.png", "..", None, 7)
    lines = [json.dumps({"file_name": name, "text": CAPTIONS[0]}).encode() for name in names]
    lines += [b"[1]", b'{"file_name": "1.png", "text": "caf\xe9"}']
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    records, skipped = read(folder)
    assert [record.caption for record in records] == [CAPTIONS[0], "caf\ufffd"]
    expected = {
        "captions without a picture": 4,
        "rows without file_name or url": 1,
        "lines that are not JSON objects": 1,
        "pictures without a caption": 1,  # 2.png, which no row names
    }
    assert skipped.counts == expected


def test_a_text_beside_a_picture_counts_before_its_row_and_a_picture_without_a_row_is_read(tmp_path: Path) -> None:
    folder = write_files(tmp_path)
    rows = [{"file_name": "./0.PNG", "text": CAPTIONS[0]}, {"file_name": "gone\\1.png", "text": "a green cat"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "1.caption").write_text(CAPTIONS[1])
    (folder / "2.txt").write_text(CAPTIONS[2])
    (folder / "lost.txt").write_text("a picture that is gone")
    (folder / "0_depth.png").write_bytes(png(8))
    (folder / "0-masklabel.png").write_bytes(png(9))
    (folder / "film.mp4").write_bytes(b"film")
    with pytest.warns(MoongateWarning, match="1.png has 'a blue cat' in 1.caption, which counts, and 'a green cat' in"):
        _, skipped = check(folder)
    assert skipped.counts["control pictures of other trainers"] == skipped.counts["files of unknown kind"] == 1


def test_pictures_in_folders_below_are_read(tmp_path: Path) -> None:
    for number, caption in enumerate(CAPTIONS):
        part = write_files(tmp_path / f"part{number}")
        for other in {0, 1, 2} - {number}:
            (part / f"{other}.png").unlink()
        (part / f"{number}.txt").write_text(caption)
    (tmp_path / "part2" / "lost.txt").write_text("a picture that is gone")
    check(tmp_path)


def test_a_caption_that_is_not_utf8_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "0.txt").write_bytes(b"caf\xe9")
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbfa blue cat")
    records, skipped = read(tmp_path)
    assert [record.caption for record in records] == ["a blue cat"]
    assert skipped.counts == {"pictures or captions that cannot be read": 1, "pictures without a caption": 1}


def test_webdataset_shards_are_read_where_they_lie(tmp_path: Path) -> None:
    records, _ = check(write_shard(tmp_path / "00000.tar"))
    assert [record.license for record in records] == ["", "CC0", "CC0"]
    check(tmp_path)


def test_a_broken_shard_is_read_up_to_where_it_breaks_and_the_next_one_whole(tmp_path: Path) -> None:
    whole = write_shard(tmp_path / "1.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: whole.index(png(1)) + 300])
    (tmp_path / "2.tar").write_text("no shard at all")
    records, skipped = read(tmp_path)
    assert [record.caption for record in records] == [CAPTIONS[0], *CAPTIONS]
    assert skipped.counts["broken shards, read up to the error"] == 2


def test_a_shard_broken_between_its_files_is_named(tmp_path: Path) -> None:
    content = bytearray(write_shard(tmp_path / "0.tar").read_bytes())
    with tarfile.open(tmp_path / "0.tar") as shard:
        start = shard.getmember("part/2.json").offset
    content[start : start + 512] = b"\xff" * 512
    (tmp_path / "0.tar").write_bytes(content)
    records, skipped = read(tmp_path)
    assert [record.caption for record in records] == list(CAPTIONS[:2])
    assert skipped.counts["broken shards, read up to the error"] == 1
    (tmp_path / "0.tar").write_bytes(content[:start])  # a shard without its empty end is not broken
    assert not read(tmp_path)[1].counts["broken shards, read up to the error"]


def test_parquet_with_bytes_in_either_layout(tmp_path: Path) -> None:
    pictures = [png(number) for number in range(3)]
    flat = pa.table({"TEXT": [*CAPTIONS, "gone"], "image": [*pictures, None], "LICENSE": ["CC0"] * 4})
    pq.write_table(flat, tmp_path / "flat.parquet", row_group_size=2)
    records, _ = check(tmp_path / "flat.parquet")
    assert records[0].license == "CC0"
    nested = [{"bytes": picture, "path": "x.png"} for picture in pictures]
    pq.write_table(pa.table({"caption": [*CAPTIONS, "gone"], "image": [*nested, None]}), tmp_path / "nested.parquet")
    check(tmp_path / "nested.parquet")
    (tmp_path / "broken.parquet").write_text("no parquet")
    records, skipped = read(tmp_path)
    assert len(records) == 6
    assert skipped.counts["broken Parquet files"] == 1
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(CollectionError, match=r"other.parquet has the columns a\. It needs a caption"):
        read(tmp_path / "other.parquet")
    (tmp_path / "broken.parquet").unlink()
    records, skipped = read(tmp_path)
    assert len(records) == 6
    assert skipped.counts["files without captions or pictures"] == 1


def test_of_several_captions_the_first_is_taken(tmp_path: Path) -> None:
    table = pa.table({"caption": [["a red dog", "a dog"], [], None], "image": [png(0), png(1), png(2)]})
    pq.write_table(table, tmp_path / "many.parquet")
    records, skipped = read(tmp_path / "many.parquet")
    assert [record.caption for record in records] == ["a red dog"]
    assert skipped.counts["pictures without a caption"] == 2


def test_a_data_set_of_the_hub_keeps_its_bytes_and_is_named_when_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingLibrary, match=r"no folder someone/captions.*pip install '\.\[hub\]'"):
        read("someone/captions")

    def unreachable(*_arguments: object, **_options: object) -> None:
        raise ConnectionError("no network")

    stand_in = types.ModuleType("datasets")
    stand_in.load_dataset = unreachable
    stand_in.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    with pytest.raises(CollectionError, match="no folder someone/captions, and no data set of the hub"):
        read("someone/captions")


class Rows(list):
    """What `datasets` streams, with as much of it as is used."""

    features = types.MappingProxyType({"image": None, "text": None})


def stream(rows: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every data set of the hub have these rows."""
    stand_in = types.ModuleType("datasets")
    stand_in.load_dataset = lambda *_arguments, **_options: Rows(rows)
    stand_in.Image = type("Image", (), {})
    stand_in.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)


def test_pictures_of_the_hub_that_are_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path)
    pictures = [{"path": str(files / "0.png"), "bytes": None}, {"path": None, "bytes": png(1)}]
    pictures += [{"path": str(files / "gone.png"), "bytes": None}, None]
    stream([{"image": picture, "text": text} for picture, text in zip(pictures, "abcd", strict=True)], monkeypatch)
    records, skipped = read("someone/captions")
    assert [(record.caption, record.data) for record in records] == [("a", png(0)), ("b", png(1))]
    assert records[0].picture == "hub:someone/captions#0"
    assert skipped.counts == {"captions without a picture": 2}


def test_a_column_of_file_names_does_not_hide_the_pictures_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [*(png(number) for number in range(3)), None]
    columns = {"file_name": [f"{n}.png" for n in range(4)], "image": pictures, "text": [*CAPTIONS, "gone"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    check(tmp_path / "a.parquet")
    stream([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)], monkeypatch)
    records, skipped = read("someone/captions")
    assert [(record.caption, record.data) for record in records] == list(zip(CAPTIONS, pictures, strict=False))
    assert skipped.counts == {"captions without a picture": 1}


def test_a_text_in_place_of_a_picture_of_the_hub_is_an_address_and_no_file_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private.png").write_bytes(png(0))
    texts = (str(tmp_path / "private.png"), "https://host/0.png")
    stream([{"image": text, "text": "a dog"} for text in texts], monkeypatch)
    records, skipped = read("someone/captions")
    assert [record.picture for record in records] == ["https://host/0.png"]
    assert skipped.counts == {"captions without a picture": 1}


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.docx").write_text("x")
    for source, message in {
        tmp_path / "empty": "has no pictures, and no metadata.jsonl",
        tmp_path / "notes.docx": "notes.docx holds no captioned pictures",
        tmp_path / "nowhere.jsonl": "There is no file or folder",
    }.items():
        with pytest.raises(CollectionError, match=message):
            read(source)


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red dog\na blue cat\n", "utf-8-sig")
    assert list(read_captions(str(tmp_path / "captions.txt"), Skipped())) == ["a red dog", "a blue cat"]
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        add(shard, "0.png", png(0))
        add(shard, "0.txt", "a red dog".encode("utf-8-sig"))
    assert [record.caption for record in read(tmp_path / "a.tar")[0]] == ["a red dog"]


def test_captions_alone_come_from_lines_of_text_or_any_source(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a dog\n\n a cat \n")
    assert list(read_captions(str(tmp_path / "lines.txt"), Skipped())) == ["a dog", "a cat"]
    shard = write_shard(tmp_path / "0.tar")
    assert list(read_captions(str(shard), Skipped())) == list(CAPTIONS)


def test_notes_name_the_first_skipped_records_and_count_the_others() -> None:
    skipped = Skipped()
    assert skipped.notes == []
    for number in range(22):
        skipped.add(f"{number}.png", "empty pictures")
    assert skipped.notes[:2] == ["Skipped: 22 empty pictures.", "  0.png"]
    assert skipped.notes[-2:] == ["  19.png", "  and 2 more"]


def good_after(bad: str, folder: Path) -> tuple[list[Record], Skipped]:
    """Read a listing of one bad line and one good row."""
    write_files(folder)
    (folder / "metadata.jsonl").write_text(f'{bad}\n{{"file_name": "0.png", "caption": "{CAPTIONS[0]}"}}\n')
    return read(folder)


@pytest.mark.parametrize(
    "bad",
    [
        "[" * 2000,
        '{"url": "http://x/1.jpg", "caption": "\\ud800"}',
        '{"url": "http://x/1.jpg", "caption": ' + "9" * 5000 + "}",
        json.dumps({"url": "http://x/1.jpg", "caption": "x" * 100_000}),
        '{"file_name": "/dev/zero", "caption": "dog"}',
        '{"file_name": "/dev/urandom", "caption": "dog"}',
        '{"file_name": "pipe", "caption": "dog"}',
        '{"file_name": "link", "caption": "dog"}',
        '{"file_name": "' + "x" * 5000 + '", "caption": "dog"}',
    ],
    ids=["deep", "surrogate", "digits", "long", "zero", "random", "pipe", "link", "name"],
)
def test_one_bad_record_of_a_listing_is_counted_and_the_next_one_read(bad: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    records, skipped = good_after(bad, tmp_path)
    assert [record.caption for record in records] == [CAPTIONS[0]]
    assert skipped.counts.pop("pictures without a caption") == 2  # 1.png and 2.png, which no row names
    assert skipped.counts.pop("files of unknown kind") == 1  # the pipe
    assert skipped.counts.total() == 1


@pytest.mark.parametrize("facts", [b"[1]", b"3", b"[" * 3000, b'{"caption": "\\ud800"}', b"\xff"])
def test_facts_of_a_shard_that_are_no_object_are_passed_over(facts: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, content in (("a.json", facts), ("a.png", png(0)), ("b.txt", b"dog"), ("b.png", png(1))):
            add(shard, name, content)
    records, skipped = read(tmp_path / "a.tar")
    assert [record.caption for record in records] == ["dog"]
    assert skipped.counts.total() == 1


@pytest.mark.parametrize("kind", ["sparse", "huge", "negative"])
def test_a_member_that_declares_more_than_there_is_is_not_read(kind: str, tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.size = {"sparse": 512, "huge": 2**40, "negative": 0}[kind]
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if kind == "sparse":
        number = lambda value: b"\x80" + value.to_bytes(11, "big")  # noqa: E731
        block[156:157] = b"S"
        block[386:410] = number(2**33 - 512) + number(512)
        block[482:495] = b"\0" + number(2**33)
    if kind == "negative":
        block[124:136] = (256**12 - 512).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + b"x" * 512 + b"\0" * 1024)
    records, skipped = read(tmp_path / "a.tar")
    assert records == []
    assert skipped.counts.total() >= (0 if kind == "negative" else 1)


def test_a_row_of_parquet_that_python_cannot_hold_is_counted_and_the_next_one_read(tmp_path: Path) -> None:
    dates = pa.array([2**60, 0], pa.date64())
    table = {"caption": pa.array(["dog", "cat"]), "image": pa.array([png(0), png(1)]), "license": dates}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    records, skipped = read(tmp_path / "a.parquet")
    assert [record.caption for record in records] == ["cat"]
    assert skipped.counts == {"rows with values that cannot be read": 1}


def test_a_list_of_captions_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(CollectionError, match="is not text in UTF-8"):
        list(read_captions(str(tmp_path / "captions.txt"), Skipped()))


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header of a tar file; a size out of the usual range is written to the base 256, as GNU's program does."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = (
        b"%011o\0" % size
        if 0 <= size < 8**11
        else bytes([0x80 | 0x7F * (size < 0)]) + (size % 256**11).to_bytes(11, "big")
    )
    block[156:157], block[257:265] = kind, b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "hostile",
    [
        header(b"2.jpg", -512),
        header(b"x", 2**40, b"x") + padded(b"x"),
        header(b"x", 2**62, b"L") + padded(b"x"),
        (header(b"x", 4, b"L") + padded(b"name")) * 2000,
        header(b"x", 14, b"x") + padded(b"14 size=-1024\n") + header(b"2.jpg", 5) + padded(b"x"),
    ],
    ids=["negative", "long header", "endless name", "names of names", "negative by a header"],
)
def test_a_hostile_header_of_a_shard_ends_its_reading_and_not_the_indexing(hostile: bytes, tmp_path: Path) -> None:
    first = header(b"0.png", len(png(0))) + padded(png(0)) + header(b"0.txt", 5) + padded(b"a dog")
    (tmp_path / "a.tar").write_bytes(first + hostile + bytes(1024))
    write_shard(tmp_path / "b.tar")
    found, skipped = read(tmp_path)
    assert found[0].caption == "a dog"
    assert len(found) > 1
    assert skipped.counts["broken shards, read up to the error"] == 1


def test_links_that_lead_out_of_a_source_are_skipped_and_counted(tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    outside.mkdir()
    source.mkdir()
    for folder in (outside, source):
        (folder / "0.png").write_bytes(png(len(folder.name)))
        (folder / "0.txt").write_text(f"a dog in the {folder.name}")
    (source / "1.png").symlink_to(outside / "0.png")
    (source / "below").symlink_to(outside)
    found, skipped = read(source)
    assert [record.caption for record in found] == ["a dog in the source"]
    assert skipped.counts == {"links that lead out of their folder": 2}


def test_row_groups_that_unpack_to_too_much_are_counted_and_the_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ROW_GROUP_BYTES", 100_000)
    pictures = [png(0), b"\0" * 1_000_000, png(2)]
    table = pa.table({"caption": ["a dog", "a bomb", "a cat"], "image": pictures})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1, compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    found, skipped = read(tmp_path / "a.parquet")
    assert [record.caption for record in found] == ["a dog", "a cat"]
    assert read_bytes(found[1].picture) == png(2)
    assert skipped.counts == {"row groups that are too large": 1}
    with pytest.raises(PictureError, match="row group 2 has 1 values"):
        read_bytes(found[1].picture.replace(":2", ":1"))
