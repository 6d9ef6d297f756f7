from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moongate.annotation import Description, photos_to_annotate, template_describer, write_captions
from moongate.data import Subject
from moongate.data.folders import find_pictures
from moongate.errors import OptionError, PictureError


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.full((32, 32, 3), 90, dtype=np.uint8)).save(tmp_path / name)
    return find_pictures(tmp_path)


def test_training_reads_the_stubs(photos: list[Path], tmp_path: Path) -> None:
    stubs = write_captions(photos, template_describer("drawing of a {} at night"))
    assert [stub.written for stub in stubs] == [True] * 3
    subject = Subject.load(tmp_path, category="owl", token="<hoot>")
    assert set(subject.captions) == {"drawing of a <hoot> owl at night"}


def test_photos_are_described_a_few_at_a_time_and_those_that_are_done_are_kept(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moongate.annotation.captions.PHOTOS_AT_ONCE", 2)
    counts = []

    def describe(pictures: Sequence[np.ndarray]) -> list[Description]:
        counts.append(len(pictures))
        if counts == [2, 1]:
            raise KeyboardInterrupt
        return [Description(caption="a {}")] * len(pictures)

    with pytest.raises(KeyboardInterrupt):
        write_captions(photos, describe)
    assert [photo.with_suffix(".txt").exists() for photo in photos] == [True, True, False]
    assert [stub.written for stub in write_captions(photos, describe)] == [False, False, True]
    assert counts == [2, 1, 1]


def test_photos_of_one_name_are_refused_because_they_would_share_what_is_written(photos: list[Path]) -> None:
    photos[0].rename(photos[1].with_suffix(".jpg"))
    with pytest.raises(PictureError, match=r"b.jpg and b.png would get one caption and one mask. Rename one of them"):
        photos_to_annotate(photos[0].parent, "owl")


def test_a_photo_that_has_a_caption_keeps_it(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine {}")
    (tmp_path / "b.caption").write_text("also mine {}")
    stubs = write_captions(photos, template_describer())
    assert [stub.written for stub in stubs] == [False, False, True]
    assert (tmp_path / "a.txt").read_text() == "mine {}"
    assert not (tmp_path / "b.txt").exists()
    assert all(stub.written for stub in write_captions(photos, template_describer(), overwrite=True))
    assert (tmp_path / "a.txt").read_text() == "photo of a {}\n"


def test_a_template_without_a_place_for_the_subject_is_refused() -> None:
    with pytest.raises(OptionError, match="has no place for the subject"):
        template_describer("photo of a dog")


def test_a_caption_in_a_listing_is_one_and_is_shown_as_it_is(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,mine {}\n")
    (tmp_path / "b.txt").write_text(" \n")
    stubs = write_captions(photos, template_describer("photo of a {} at night"))
    assert [stub.written for stub in stubs] == [False, True, True], "an empty text is no caption"
    assert [stub.description.caption for stub in stubs] == ["mine {}", *["photo of a {} at night"] * 2]
    assert not (tmp_path / "a.txt").exists()


def test_a_caption_that_is_no_text_is_named_before_a_photo_is_described(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("K\u00f6ln".encode("latin-1"))
    with pytest.raises(PictureError, match=r"c.txt cannot be read: it is not text in UTF-8"):
        write_captions(photos, template_describer())
    assert not (tmp_path / "a.txt").exists()
    assert all(stub.written for stub in write_captions(photos, template_describer(), overwrite=True))


@pytest.mark.parametrize(
    ("category", "message"), [(" ", "The category is empty"), ("<hoot> owl", "'<hoot> owl' holds the token '<hoot>'")]
)
def test_a_category_is_words_that_the_model_knows(category: str, message: str, photos: list[Path]) -> None:
    with pytest.raises(OptionError, match=message):
        photos_to_annotate(photos[0].parent, category)
