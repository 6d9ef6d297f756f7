import json
from pathlib import Path

import pytest
from PIL import Image

from moongate.data.caption_files import first_text, read_captions
from moongate.data.folders import contents, gather
from moongate.errors import MoongateWarning, PictureError


def pictures(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("0.png", "1.png"):
        Image.new("RGB", (20, 20), "red").save(folder / name, format="PNG")
    return folder


def rows(folder: Path, *captions: tuple[str, str], key: str = "text") -> None:
    lines = [json.dumps({"file_name": name, key: caption}) for name, caption in captions]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def captions(folder: Path) -> list[str]:
    gathered = gather(folder)
    return read_captions(gathered.photos, gathered.folders)


@pytest.mark.parametrize("name", ["0.txt", "0.caption", "0.TXT", "0.Caption"])
def test_a_text_file_beside_a_picture_is_its_caption(tmp_path: Path, name: str) -> None:
    (pictures(tmp_path) / name).write_text("\ufeff a red\n dog ", encoding="utf-8")
    assert captions(tmp_path) == ["a red dog", ""]


@pytest.mark.parametrize(
    "name", ["0.png", "./0.png", ".\\0.png", "0.PNG", "gone/0.png", "C:\\data\\0.png", "/gone/0.png"]
)
@pytest.mark.parametrize("key", ["caption", "text", "prompt", "Caption"])
def test_a_row_of_the_listing_is_found_however_it_names_the_picture(tmp_path: Path, name: str, key: str) -> None:
    rows(pictures(tmp_path), (name, "a red dog"), key=key)
    assert captions(tmp_path) == ["a red dog", ""]


def test_a_table_lists_captions_too(tmp_path: Path) -> None:
    (pictures(tmp_path) / "metadata.csv").write_text('file_name,text\r\n1.png,"a dog, red"\r\n', "utf-8-sig")
    assert captions(tmp_path) == ["", "a dog, red"]
    (tmp_path / "metadata.csv").write_text("image,prompt\n./0.png,a cat\n")
    assert captions(tmp_path) == ["a cat", ""]


def test_a_caption_with_commas_outside_of_quotation_marks_is_refused_and_not_cut(tmp_path: Path) -> None:
    (pictures(tmp_path) / "metadata.csv").write_text("file_name,text\n0.png,a dog, red\n")
    with pytest.raises(PictureError, match=r"Line 2 of .*metadata.csv cannot .* has commas in quotation marks"):
        captions(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a dog,\n")
    assert captions(tmp_path) == ["a dog", ""]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('file_name,text\n0.png,"a red dog\n1.png,a cat\n', "a quotation mark is not closed"),
        ("file_name,text,Text\n0.png,a red dog,a cat\n", "has the column text twice"),
    ],
)
def test_a_table_in_which_a_caption_would_be_lost_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (pictures(tmp_path) / "metadata.csv").write_text(content)
    with pytest.raises(PictureError, match=said):
        captions(tmp_path)


def test_quotation_marks_within_a_caption_of_a_table_are_read(tmp_path: Path) -> None:
    (pictures(tmp_path) / "metadata.csv").write_text('file_name,text\n0.png,a 5" dog\n1.png,"a ""red""\ndog"\n')
    assert captions(tmp_path) == ['a 5" dog', 'a "red" dog']


@pytest.mark.parametrize("caption", [{"en": "a dog"}, True, [["a dog"]], [{"text": "a dog"}]])
def test_a_caption_that_is_no_text_is_named_and_not_spelled_out(caption: object, tmp_path: Path) -> None:
    line = json.dumps({"file_name": "0.png", "caption": caption})
    (pictures(tmp_path) / "metadata.jsonl").write_text(line)
    with pytest.raises(PictureError, match=r"Line 1 of .*metadata.jsonl cannot be read"):
        captions(tmp_path)
    assert first_text(json.loads(line), ("caption",)) == ""


def test_a_listing_that_was_copied_with_its_folder_fits_the_copy(tmp_path: Path) -> None:
    for folder in (tmp_path / "old", tmp_path / "new"):
        rows(pictures(folder), (str(tmp_path / "old" / "0.png"), "a red dog"), ("../old/1.png", "a cat"))
    assert captions(tmp_path / "new") == ["a red dog", ""]
    assert captions(tmp_path / "old") == ["a red dog", "a cat"]


def test_of_captions_that_differ_the_first_counts_and_both_are_said(tmp_path: Path) -> None:
    rows(pictures(tmp_path), ("0.png", "from the listing"), ("1.png", "same"))
    (tmp_path / "metadata.csv").write_text("file_name,caption\n0.png,from the table\n")
    (tmp_path / "1.txt").write_text("same\n")
    with pytest.warns(MoongateWarning, match="'from the listing' in metadata.jsonl, which counts, and 'from the t"):
        assert captions(tmp_path) == ["from the listing", "same"]
    (tmp_path / "0.caption").write_text("from the caption")
    with pytest.warns(MoongateWarning, match="'from the caption' in 0.caption, which counts, and 'from the l"):
        assert captions(tmp_path)[0] == "from the caption"
    (tmp_path / "0.txt").write_text("from the text")
    with pytest.warns(MoongateWarning, match="0.png has 'from the text' in 0.txt, which counts, and 'from the c"):
        assert captions(tmp_path)[0] == "from the text"
    (tmp_path / "0.txt").write_text(" \n")
    with pytest.warns(MoongateWarning, match="'from the caption' in 0.caption, which counts"):
        assert captions(tmp_path)[0] == "from the caption", "an empty file is no caption"


def test_captions_that_fit_no_picture_are_reported(tmp_path: Path) -> None:
    rows(pictures(tmp_path), ("0.png", "a dog"), ("7.png", "a cat"))
    (tmp_path / "lost.caption").write_text("a cat")
    with pytest.warns(MoongateWarning, match="Captions that fit no picture: '7.png' in metadata.jsonl; lost.caption"):
        assert captions(tmp_path) == ["a dog", ""]
    assert read_captions([tmp_path / "0.png"]) == ["a dog"], "of a file that was named, other files may lie around"


def test_a_listing_without_captions_is_reported_with_its_keys(tmp_path: Path) -> None:
    rows(pictures(tmp_path), ("0.png", "a dog"), key="label")
    with pytest.warns(MoongateWarning, match="has no captions; its keys are file_name, label. Write"):
        assert captions(tmp_path) == ["", ""]


def test_a_listing_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "metadata.csv").write_text("picture,words\n0.png,a dog\n")
    with pytest.raises(
        PictureError, match=r"Line 2 of .*metadata.csv cannot be read. Name its columns file_name.*with commas"
    ):
        captions(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n0.png,café\n".encode("latin-1"))
    with pytest.raises(PictureError, match=r"listing .*metadata.csv is not in UTF-8"):
        captions(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "0.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(PictureError, match=r"0.txt cannot be read: it is not text in UTF-8"):
        captions(tmp_path)


def test_pictures_that_differ_in_case_alone_keep_their_captions_apart(tmp_path: Path) -> None:
    rows(pictures(tmp_path, "a.png", "A.png"), ("a.png", "small"), ("A.png", "large"))
    assert captions(tmp_path) == ["large", "small"]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.txt").write_text("small")
    assert captions(tmp_path) == ["", "small"]


def test_a_listing_above_a_folder_gives_captions_to_its_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "train")
    rows(tmp_path, ("train/0.png", "a dog"), ("test/0.png", "a cat"))
    assert captions(tmp_path / "train") == ["a dog", ""]


def test_pictures_in_kohyas_folders_have_their_captions(tmp_path: Path) -> None:
    pictures(tmp_path / "10_dog", "0.png")
    pictures(tmp_path / "2_dog", "0.png")
    (tmp_path / "10_dog" / "0.caption").write_text("a red dog")
    rows(tmp_path, ("2_dog/0.png", "a small dog"))
    with pytest.warns(MoongateWarning, match="the number of repeats is ignored"):
        assert captions(tmp_path) == ["a red dog", "a small dog"]


def test_the_first_value_of_a_row_is_taken(tmp_path: Path) -> None:
    assert first_text({"Text": ["a dog", "a cat"], "caption": None}, ("caption", "text")) == "a dog"
    assert first_text({"text": float("nan"), "caption": "a dog"}, ("text", "caption")) == "a dog"
    rows(pictures(tmp_path), ("0.png", [""]), ("1.png", ["a cat"]))  # type: ignore[arg-type]
    assert captions(tmp_path) == ["", "a cat"]
    assert first_text({"text": 12}, ("text",)) == "12"
    assert first_text({"text": []}, ("text",)) == first_text({None: 1}, ("text",)) == ""


def test_captions_and_listings_of_any_length_are_refused_before_they_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    photo = tmp_path / "0.png"
    for name, content, message in (
        ("0.txt", "x" * 20_001, "has 20001 characters; at most 20000 are read"),
        ("metadata.jsonl", json.dumps({"file_name": "0.png", "caption": "x" * 20_001}), "has 20001 characters"),
        ("metadata.jsonl", " " * 1_000_001, "has a line of more than 1000000 characters"),
        ("metadata.csv", "a," * 1001 + "\n", "has more than 1000 columns"),
        ("metadata.csv", "file_name,caption\n0.png," + "x" * 200_000, "is broken"),
    ):
        file = tmp_path / name
        file.write_text(content)
        with pytest.raises(PictureError, match=message):
            read_captions([photo], [contents(tmp_path)])
        with file.open("wb") as sparse:
            sparse.truncate(50 * 2**30)  # takes no room on the disk
        with pytest.raises(PictureError, match="at most 5 are read|a line of more than"):
            read_captions([photo], [contents(tmp_path)])
        file.unlink()
