from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moongate.data.subjects import PHRASES, PRESETS, ZOOM, Augmented, Regularization, Subject, augment, photo_of, square
from moongate.errors import OptionError, PictureError, TokenError

SIDE, CELL = 128, 8


def augmented(seed: int, *, value: float = 1.0) -> Augmented:
    picture = torch.full((3, round(SIDE * ZOOM[1]), round(SIDE * ZOOM[1])), value)
    return augment(picture, side_px=SIDE, cell_px=CELL, generator=torch.Generator().manual_seed(seed))


def test_the_mask_is_the_region_that_holds_picture_at_latent_scale() -> None:
    shrunk = 0
    for seed in range(200):
        item = augmented(seed)  # a white picture on the mid-grey canvas shows where it lies
        covered = (item.image > 0.99).all(dim=0)
        assert torch.equal(covered, item.mask.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1))
        assert (item.image[:, ~covered] == 0).all()
        shrunk += not item.mask.all()
    assert shrunk > 50


def test_the_mask_of_an_uncovered_full_size_picture_is_all_ones() -> None:
    full = [item for item in map(augmented, range(300)) if (item.image > 0.99).all() and not item.phrase]
    assert full
    assert all(item.mask.all() for item in full)


def test_sizes_phrases_and_shares_are_those_of_the_paper() -> None:
    items = [augmented(seed) for seed in range(800)]
    zoomed = [item for item in items if item.phrase in PHRASES["large"]]
    assert abs(len(zoomed) / len(items) - 1 / 3) < 0.05
    assert all(item.mask.all() for item in zoomed)
    sides = [int(item.mask.any(dim=0).sum()) / (SIDE // CELL) for item in items if item.phrase not in PHRASES["large"]]
    assert min(sides) == pytest.approx(0.4, abs=0.04)
    assert max(sides) == 1
    for item in items:
        if item.phrase not in PHRASES["large"]:
            share = int(item.mask.any(dim=0).sum()) / (SIDE // CELL)
            assert (item.phrase in PHRASES["small"]) == (share < 0.6)
    assert {item.phrase for item in items} == {"", *PHRASES["small"], *PHRASES["large"]}


def test_zooming_shows_a_part_of_the_picture_magnified() -> None:
    source = round(SIDE * ZOOM[1])
    ramp = torch.linspace(-1, 1, source).expand(3, source, source)
    slopes = []
    for seed in range(60):
        item = augment(ramp, side_px=SIDE, cell_px=CELL, generator=torch.Generator().manual_seed(seed))
        if item.phrase in PHRASES["large"]:
            slopes.append(float(item.image[0, 0].diff().mean()) * SIDE / 2)
    assert slopes
    assert all(1 / 1.45 < slope < 1 / 1.15 for slope in slopes)


def test_the_phrase_goes_before_the_caption() -> None:
    item = Augmented(image=torch.zeros(3, 8, 8), mask=torch.ones(1, 1, dtype=torch.bool), phrase="far away")
    assert item.caption("photo of a <bear> teddy bear") == "far away photo of a <bear> teddy bear"


def test_flips_happen_only_when_asked_for() -> None:
    ramp = torch.linspace(-1, 1, 180).expand(3, 180, 180)

    def falls(seed: int, *, flips: bool) -> bool:
        generator = torch.Generator().manual_seed(seed)
        image = augment(ramp, side_px=SIDE, cell_px=CELL, generator=generator, flips=flips).image[0]
        row = image[image.abs().sum(1).argmax()]
        row = row[row != 0]
        return bool(row[-1] < row[0])

    assert not any(falls(seed, flips=False) for seed in range(40))
    assert 5 < sum(falls(seed, flips=True) for seed in range(40)) < 35


def test_the_center_is_cut_out_and_never_squashed() -> None:
    wide = np.zeros((40, 100, 3), dtype=np.uint8)
    wide[:, 30:70] = 255
    assert square(wide, 20).mean() > 0.95


def test_a_masked_thing_above_the_center_of_a_portrait_was_cut_off() -> None:
    portrait = np.zeros((90, 30, 3), dtype=np.uint8)
    portrait[:20, 5:25] = 255
    cut = square(portrait, 30, mask=portrait[..., 0])
    assert cut[3, :20, 5:25].min() == 1  # the whole thing, in its size
    assert torch.equal(cut[3], cut[0])  # and the mask lies on it
    landscape = square(portrait.transpose(1, 0, 2), 30, mask=portrait[..., 0].T)
    assert torch.equal(landscape, cut.transpose(1, 2))
    central = np.roll(portrait, 30, axis=0)
    assert torch.equal(square(central, 30, mask=central[..., 0])[:3], square(central, 30))


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


def test_a_caption_may_leave_a_place_for_the_words_of_the_thing(pictures: Path) -> None:
    (pictures / "1.txt").write_text("drawing of a {} in a forest, {by me}\n")
    (pictures / "2.txt").write_text("the {}'s nap")
    subject = Subject.load(pictures, category="owl", token="<owl>")
    assert subject.captions[1:] == ("drawing of a <owl> owl in a forest, {by me}", "the <owl> owl's nap")
    assert Subject.load(pictures, category="owl").captions[1] == "drawing of an owl in a forest, {by me}"


def test_a_caption_that_is_not_utf8_ended_in_a_traceback(pictures: Path) -> None:
    (pictures / "1.txt").write_bytes(b"a <bear> in a caf\xe9")
    with pytest.raises(PictureError, match=r"caption .*1.txt is not in UTF-8 .* Save it as UTF-8"):
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


def test_held_out_pictures_are_named_and_not_learned_from(pictures: Path) -> None:
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


def masked(seed: int, columns: slice) -> Augmented:
    side = round(SIDE * ZOOM[1])
    picture = torch.full((4, side, side), -1.0)
    picture[3, :, columns] = 1
    picture[:3] = picture[3]  # white where it counts
    return augment(picture, side_px=SIDE, cell_px=CELL, generator=torch.Generator().manual_seed(seed))


def test_a_users_mask_is_the_region_that_counts_at_latent_scale() -> None:
    half = round(SIDE * ZOOM[1]) // 2
    for seed in range(100):
        item, unmasked = masked(seed, slice(0, half)), augmented(seed)
        white = torch.nn.functional.avg_pool2d(item.image[:1], CELL)[0]
        assert item.mask[white > 0.3].all()  # a cell of the canvas is grey, 0
        assert not item.mask[white < -0.3].any()
        assert not (item.mask & ~unmasked.mask).any()
        assert item.image.shape == (3, SIDE, SIDE)
        assert item.phrase == unmasked.phrase


def test_a_thing_smaller_than_a_latent_cell_still_counts() -> None:
    cells = [int(masked(seed, slice(100, 103)).mask.sum()) for seed in range(60)]
    assert sum(count > 0 for count in cells) > 50  # a close-up may show none of it
    assert max(cells) < 3 * SIDE // CELL


def test_the_article_fits_the_word() -> None:
    assert photo_of("armchair") == "photo of an armchair"
    assert photo_of("<bear> armchair") == "photo of a <bear> armchair"
    assert photo_of("bear", "armchair") == "photo of a bear and an armchair"


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
    with pytest.raises(PictureError, match="None of the 4 captions .* names 'car'"):
        Regularization.load(tmp_path, category="car", only_category=True)


def test_a_broken_line_of_a_listing_ended_in_a_traceback(pictures: Path) -> None:
    for line in ('{"file_name": ', '{"text": "a dog"}', "[1]", '"0.png"'):
        (pictures / "metadata.jsonl").write_text(f'{{"file_name": "0.png", "text": "a bear"}}\n\n{line}\n')
        with pytest.raises(PictureError, match=r"Line 3 of .*metadata.jsonl cannot be read. Write"):
            Regularization.load(pictures, category="bear")
