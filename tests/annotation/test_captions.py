from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moongate.annotation import template_describer, write_captions
from moongate.data import Subject
from moongate.data.folders import find_pictures
from moongate.errors import OptionError


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
