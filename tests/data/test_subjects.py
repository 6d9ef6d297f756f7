from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moongate.data import PRESETS, Regularization, Subject
from moongate.errors import MoongateWarning, OptionError, PictureError, TokenError
from moongate.pocket import pool_folder


def test_pictures_that_cannot_be_used_are_refused_each_with_its_reason(tmp_path: Path) -> None:
    Image.new("RGB", (200, 200), "red").save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (3, 2)).save(tmp_path / "dot.png")
    for name, message in {
        "cut.jpg": "cut.jpg is damaged or truncated",
        "text.png": "text.png is not a picture that can be read",
        "dot.png": "dot.png has 3 x 2 pixels; at least 16 x 16 are needed",
    }.items():
        with pytest.raises(PictureError, match=message):
            Subject.load(tmp_path / name, category="bear")
    (tmp_path / "none").mkdir()
    with pytest.raises(PictureError, match="holds no pictures"):
        Subject.load(tmp_path / "none", category="bear")
    with pytest.raises(PictureError, match="There is no picture or folder"):
        Subject.load(tmp_path / "nowhere", category="bear")
    with pytest.raises(PictureError, match="No pictures were given"):
        Subject.load([], category="bear")


def test_a_text_file_beside_a_picture_is_its_caption(pictures: Path) -> None:
    (pictures / "1.txt").write_text("a <bear>, asleep\n")
    (pictures / "2.txt").write_text("the <bear>'s nap")
    subject = Subject.load(pictures, category="teddy bear", token="<bear>")
    assert subject.captions == ("photo of a <bear> teddy bear", "a <bear>, asleep", "the <bear>'s nap")


def test_captions_of_listings_and_masks_of_other_trainers_come_with_the_subject(pictures: Path) -> None:
    (pictures / "metadata.jsonl").write_text('{"file_name": "./0.PNG", "text": "a {} in drawing"}')
    (pictures / "1.caption").write_text("a <bear> on the beach")
    Image.new("L", (100, 80), "white").save(pictures / "2-masklabel.png")
    subject = Subject.load(pictures, category="bear", token="<bear>")
    expected = ("a <bear> bear in drawing", "a <bear> on the beach", "photo of a <bear> bear")
    assert subject.captions == expected
    assert [mask is None for mask in subject.masks] == [True, True, False]
    Image.new("L", (100, 80), "white").save(pictures / "2.mask.png")
    with pytest.raises(PictureError, match="has the masks 2-masklabel.png and 2.mask.png. Keep one"):
        Subject.load(pictures, category="bear", token="<bear>")


def test_regularization_reads_captions_as_subjects_do(pictures: Path) -> None:
    (pictures / "metadata.csv").write_text("file_name,text\n./0.png,a red bear\n1.png,a cat\n")
    (pictures / "1.txt").write_text("a bear on the beach")
    with pytest.warns(MoongateWarning, match="1.png has 'a bear on the beach' in 1.txt, which counts, and 'a cat'"):
        prior = Regularization.load(pictures, category="bear")
    assert prior.captions == ("a red bear", "a bear on the beach", "photo of a bear")


def test_a_caption_may_leave_a_place_for_the_words_of_the_subject(pictures: Path) -> None:
    (pictures / "1.txt").write_text("drawing of a {} in a forest, {by me}\n")
    (pictures / "2.txt").write_text("the {}'s nap")
    subject = Subject.load(pictures, category="owl", token="<owl>")
    assert subject.captions[1:] == ("drawing of a <owl> owl in a forest, {by me}", "the <owl> owl's nap")
    assert Subject.load(pictures, category="owl").captions[1] == "drawing of an owl in a forest, {by me}"


def test_a_caption_that_is_not_utf8_is_named_in_the_error(pictures: Path) -> None:
    (pictures / "1.txt").write_bytes(b"a <bear> in a caf\xe9")
    with pytest.raises(
        PictureError,
        match=r"caption .*1.txt cannot be read: it is not text in UTF-8 .* Save it as a short text in UTF-8",
    ):
        Subject.load(pictures, category="bear", token="<bear>")


def test_a_caption_without_the_token_and_an_empty_category_are_refused(pictures: Path) -> None:
    (pictures / "1.txt").write_text("a bear, asleep")
    with pytest.raises(TokenError, match="caption 'a bear, asleep' lacks the token '<bear>'.* or {} for these words"):
        Subject.load(pictures, category="bear", token="<bear>")
    with pytest.raises(OptionError, match="category is empty"):
        Subject.load(pictures, category=" ")


def test_captions_come_from_the_preset(pictures: Path) -> None:
    assert PRESETS["object"].describe("<bear> teddy bear") == "photo of a <bear> teddy bear"
    assert PRESETS["object"].describe("armchair") == "photo of an armchair"
    style = Subject.load(pictures, category="art", token="<van>", preset=PRESETS["style"])
    assert set(style.captions) == {"painting in the style of <van> art"}


def test_held_out_pictures_are_named_and_not_read(pictures: Path) -> None:
    subject = Subject.load(pictures, category="bear", holdout=1)
    assert (subject.names, subject.held_out) == (("0.png", "1.png"), ("2.png",))
    assert len(subject.pictures) == len(subject.captions) == 2
    with pytest.raises(OptionError, match="holdout is 3, and there are 3 pictures"):
        Subject.load(pictures, category="bear", holdout=3)


def test_masks_beside_pictures_and_alpha_on_request_come_with_the_subject(pictures: Path) -> None:
    assert Subject.load(pictures, category="bear").masks == ()
    Image.new("L", (100, 80), "white").save(pictures / "1.mask.png")
    cut = Image.open(pictures / "2.png").convert("RGBA")
    cut.putalpha(Image.linear_gradient("L").resize((100, 80)))
    cut.save(pictures / "2.png")
    assert [mask is None for mask in Subject.load(pictures, category="bear").masks] == [True, False, True]
    subject = Subject.load(pictures, category="bear", alpha_is_mask=True)
    assert [mask is None for mask in subject.masks] == [True, False, False]


def test_captions_and_masks_that_do_not_fit_the_pictures_are_refused_each_with_its_reason(pictures: Path) -> None:
    subject = Subject.load(pictures, category="bear")
    with pytest.raises(PictureError, match="3 pictures and 1 captions were given. Give each picture a caption."):
        replace(subject, captions=("photo of a bear",))
    with pytest.raises(PictureError, match="3 pictures and 0 captions"):
        Regularization(pictures=subject.pictures, captions=())
    with pytest.raises(PictureError, match="Mask 3 hides the whole picture. Paint what is to be learned white"):
        replace(subject, masks=(None, None, np.full((80, 100), 127, dtype=np.uint8)))
    with pytest.raises(PictureError, match="Mask 2 has 80 x 100 pixels and its picture 100 x 80"):
        replace(subject, masks=(None, np.full((100, 80), 255, dtype=np.uint8), None))
    assert replace(subject, masks=(np.full((27, 33), 255, dtype=np.uint8), None, None)).masks  # a third of the size


def test_regularization_takes_the_pictures_that_name_the_category(tmp_path: Path) -> None:
    captions = ["photo of a horse", "two horses", "photo of a seahorse", "a cat"]
    lines = []
    for index, caption in enumerate(captions):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{index}.png")
        lines.append(f'{{"file_name": "{index}.png", "caption": "{caption}"}}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    chosen = Regularization.load(tmp_path, category="rocking horse", only_category=True)
    assert chosen.captions == ("photo of a horse", "two horses")
    everything = Regularization.load(tmp_path, category="horse", at_most=3)
    assert everything.captions == tuple(captions[:3])
    with pytest.raises(PictureError, match="None of the 4 captions .* names 'car'. Choose such a category"):
        Regularization.load(tmp_path, category="car", only_category=True)


def test_a_category_that_no_caption_of_pocket_s_pool_names_is_answered_with_those_that_are_there() -> None:
    with pytest.raises(PictureError) as raised:
        Regularization.load(pool_folder(), category="giraffe", only_category=True)
    message = str(raised.value)
    known = message.partition("They name ")[2].partition(". ")[0].split(", ")
    assert {"dog", "cat", "teapot"} <= set(known)
    assert known == sorted(known)
    assert "--regularization generated" in message


def test_a_broken_line_of_a_listing_is_named_in_the_error(pictures: Path) -> None:
    for line in ('{"file_name": ', '{"text": "a dog"}', "[1]", '"0.png"'):
        (pictures / "metadata.jsonl").write_text(f'{{"file_name": "0.png", "text": "a bear"}}\n\n{line}\n')
        with pytest.raises(PictureError, match=r"Line 3 of .*metadata.jsonl cannot be read. Write"):
            Regularization.load(pictures, category="bear")


def test_the_hash_identifies_pictures_captions_and_masks(pictures: Path) -> None:
    subject = Subject.load(pictures, category="bear")
    assert subject.hash == Subject.load(pictures, category="bear").hash
    masked = replace(subject, masks=(np.full((80, 100), 255, dtype=np.uint8), None, None))
    other = replace(subject, captions=("photo of a bear", "photo of a bear", "photo of a cat"))
    assert len({subject.hash, masked.hash, other.hash}) == 3
    prior = Regularization(pictures=subject.pictures, captions=subject.captions)
    assert prior.hash == subject.hash  # as without masks


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 64), np.uint8), r"Picture 2 of .* is uint8 \[64, 64\]. Give uint8 \[height, width, 3\]"),
        (np.zeros((64, 64, 4), np.uint8), r"is uint8 \[64, 64, 4\]"),
        (np.zeros((64, 64, 3)), r"is float64 \[64, 64, 3\]"),
        (np.zeros((1, 64, 3), np.uint8), r"is uint8 \[1, 64, 3\]. .* at least 16 pixels a side"),
        ([[0]], "is a list. Give a NumPy array"),
    ],
)
def test_arrays_that_are_no_pictures_are_named(picture: object, message: str) -> None:
    pictures, captions = (np.zeros((64, 64, 3), np.uint8), picture), ("a dog",) * 2
    with pytest.raises(PictureError, match=message):
        Subject(pictures=pictures, captions=captions, category="dog")  # type: ignore[arg-type]
    with pytest.raises(PictureError, match=message):
        Regularization(pictures=pictures, captions=captions)  # type: ignore[arg-type]


def test_words_that_utf8_cannot_hold_are_named() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(PictureError, match=r"The caption 'a dog \\ud83d' has a character that UTF-8 cannot hold"):
        Subject(pictures=(picture,), captions=("a dog \ud83d",), category="dog")
    with pytest.raises(OptionError, match="The category .* has a character that UTF-8 cannot hold"):
        Subject(pictures=(picture,), captions=("a dog",), category="d\udcf6g")


def test_the_place_for_words_in_a_regularization_caption_is_the_category(pictures: Path) -> None:
    (pictures / "0.txt").write_text("photo of a {} in a forest")
    assert Regularization.load(pictures, category="owl").captions[:2] == (
        "photo of an owl in a forest",
        "photo of an owl",
    )
