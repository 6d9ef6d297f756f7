import numpy as np
import pytest
import torch

from moongate.data.augmentation import PHRASES, ZOOM, Augmented, Framing, augment, square

SIDE, CELL = 128, 8


def augmented(seed: int, *, value: float = 1.0) -> Augmented:
    picture = torch.full((3, round(SIDE * ZOOM[1]), round(SIDE * ZOOM[1])), value)
    return augment(picture, side_px=SIDE, cell_px=CELL, generator=torch.Generator().manual_seed(seed))


def masked(seed: int, columns: slice) -> Augmented:
    side = round(SIDE * ZOOM[1])
    picture = torch.full((4, side, side), -1.0)
    picture[3, :, columns] = 1
    picture[:3] = picture[3]  # white where it counts
    return augment(picture, side_px=SIDE, cell_px=CELL, generator=torch.Generator().manual_seed(seed))


def test_the_mask_is_the_region_that_holds_picture_at_latent_scale() -> None:
    shrunk = 0
    for seed in range(200):
        item = augmented(seed)  # a white picture on the mid-gray canvas shows where it lies
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
    choices = Framing(is_flipped=False, picture_px=8, top=0, left=0, phrase="far away")
    assert choices.caption("photo of a <bear> teddy bear") == "far away photo of a <bear> teddy bear"


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


def test_a_masked_subject_above_the_center_of_a_portrait_stays_whole() -> None:
    portrait = np.zeros((90, 30, 3), dtype=np.uint8)
    portrait[:20, 5:25] = 255
    cut = square(portrait, 30, mask=portrait[..., 0])
    assert cut[3, :20, 5:25].min() == 1  # the whole subject, in its size
    assert torch.equal(cut[3], cut[0])  # and the mask lies on it
    landscape = square(portrait.transpose(1, 0, 2), 30, mask=portrait[..., 0].T)
    assert torch.equal(landscape, cut.transpose(1, 2))
    central = np.roll(portrait, 30, axis=0)
    assert torch.equal(square(central, 30, mask=central[..., 0])[:3], square(central, 30))


def test_a_users_mask_is_the_region_that_counts_at_latent_scale() -> None:
    half = round(SIDE * ZOOM[1]) // 2
    for seed in range(100):
        item, unmasked = masked(seed, slice(0, half)), augmented(seed)
        white = torch.nn.functional.avg_pool2d(item.image[:1], CELL)[0]
        assert item.mask[white > 0.3].all()  # a cell of the canvas is gray, 0
        assert not item.mask[white < -0.3].any()
        assert not (item.mask & ~unmasked.mask).any()
        assert item.image.shape == (3, SIDE, SIDE)
        assert item.phrase == unmasked.phrase


def test_a_subject_smaller_than_a_latent_cell_still_counts() -> None:
    cells = [int(masked(seed, slice(100, 103)).mask.sum()) for seed in range(60)]
    assert sum(count > 0 for count in cells) > 50  # a close-up may show none of it
    assert max(cells) < 3 * SIDE // CELL


def test_what_a_zoom_shows_and_where_a_shrunk_picture_lies_is_drawn_for_rows_and_columns_apart() -> None:
    """The first channel of the picture rises from left to right, the second from top to bottom."""
    source = round(SIDE * ZOOM[1])
    ramp = torch.linspace(-1, 1, source).expand(source, source)
    picture = torch.stack([ramp, ramp.T, torch.zeros_like(ramp)])
    centers: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for seed in range(300):
        item = augment(picture, side_px=SIDE, cell_px=CELL, generator=torch.Generator().manual_seed(seed))
        if item.phrase in PHRASES["large"]:
            centers[True].append((float(item.image[0].mean()), float(item.image[1].mean())))
        elif not item.mask.all():
            rows, columns = item.mask.any(1).nonzero().flatten(), item.mask.any(0).nonzero().flatten()
            cells = SIDE // CELL
            centers[False].append(((rows[0] + rows[-1] + 1) / cells - 1, (columns[0] + columns[-1] + 1) / cells - 1))
            inside = item.image[:2, item.mask.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)]
            assert inside.mean(1).abs().max() < 0.01, "the whole picture is shown"
    for found in centers.values():
        assert len(found) > 60
        places = np.array(found)
        assert (places.min(0) < -0.1).all()
        assert (places.max(0) > 0.1).all()
        assert abs(np.corrcoef(places.T)[0, 1]) < 0.3
