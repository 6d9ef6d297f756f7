from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moongate.annotation import attention_segmenter, binary, write_masks
from moongate.backbone import Backbone
from moongate.data.folders import find_pictures
from moongate.data.pictures import read_mask_beside
from moongate.errors import OptionError, PictureError

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def blob(height: int = 24, width: int = 32) -> np.ndarray:
    soft = np.zeros((height, width), dtype=np.float32)
    soft[6:18, 8:24] = 3.0
    return soft


def test_training_reads_the_mask_beside_its_photo(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    (mask,) = write_masks(find_pictures(tmp_path), lambda _: blob())
    assert (mask.written, mask.file.name) == (True, "a.mask.png")
    read = read_mask_beside(tmp_path / "a.png")
    assert read is not None
    assert read.shape == (48, 64)
    assert set(np.unique(read)) == {0, 255}
    assert read.mean() / 255 == pytest.approx(mask.share) == pytest.approx(0.25, abs=0.03)
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def test_a_mask_is_replaced_on_request_under_the_name_it_has(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    white = Image.fromarray(np.full((48, 64), 255, dtype=np.uint8))
    white.save(tmp_path / "a-masklabel.png")
    for overwrite, lowest in ((False, 255), (True, 0)):
        (mask,) = write_masks([tmp_path / "a.png"], lambda _: blob(), overwrite=overwrite)
        assert mask.written is overwrite
        read = read_mask_beside(tmp_path / "a.png")
        assert read is not None
        assert read.min() == lowest


@pytest.mark.parametrize("before", [["a.mask.jpg"], ["A-masklabel.bmp"], ["a.mask.jpg", "a.mask.png"]])
def test_a_replaced_mask_is_a_png_file_by_its_name_and_the_only_one(tmp_path: Path, before: list[str]) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    for name in before:
        Image.new("L", (64, 48), "white").save(tmp_path / name)
    (mask,) = write_masks([tmp_path / "a.png"], lambda _: blob(), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", mask.file.name}
    assert mask.file.name == f"{Path(before[0]).stem}.png"
    with Image.open(mask.file) as image:
        assert image.format == "PNG"
    read = read_mask_beside(tmp_path / "a.png")
    assert read is not None
    assert read.min() == 0


def test_a_mask_that_is_kept_is_measured_and_not_made_again(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    half = np.zeros((48, 64), dtype=np.uint8)
    half[:24] = 255
    Image.fromarray(half).save(tmp_path / "a.mask.png")

    def segment(_: np.ndarray) -> np.ndarray:
        raise AssertionError

    (mask,) = write_masks([tmp_path / "a.png"], segment)
    assert (mask.written, mask.share) == (False, 0.5)
    (tmp_path / "a.mask.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"a.mask.png is not a picture that can be read"):
        write_masks([tmp_path / "a.png"], segment)


def test_the_default_threshold_leaves_the_least_variance_within_the_two_parts() -> None:
    rng = np.random.default_rng(1)
    soft = rng.normal(0.3, 0.1, (64, 64)).astype(np.float32)
    soft[:, 40:] += 0.5

    def within(mask: np.ndarray) -> float:
        return sum(soft[part].var() * part.sum() for part in (mask, ~mask) if part.any())

    chosen = within(binary(soft, soft.shape))
    assert chosen <= min(within(binary(soft, soft.shape, threshold=t)) for t in np.linspace(0.05, 0.95, 19)) * 1.01


def test_a_threshold_outside_of_0_and_1_is_refused_before_any_photo_is_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="threshold is 1.5"):
        write_masks([tmp_path / "none.png"], lambda _: blob(), threshold=1.5)


def test_without_queries_every_word_has_the_same_attention_everywhere(tiny: Backbone) -> None:
    """The softmax of equal scores is one over the number of tokens."""
    names = [name for name in tiny.weights("denoiser") if ".attn2.to_q." in name]
    zeros = {name: torch.zeros_like(tiny.parameter(name)) for name in names}
    with tiny.weights_replaced(zeros):
        soft = attention_segmenter(tiny, "dog")(PICTURE)
    tokens = tiny.encode_text(["dog"]).features.shape[1]
    side = tiny.resolution_px // tiny.latent_scale
    assert soft.shape == (side, side)
    assert soft == pytest.approx(1 / tokens, rel=1e-4)


def test_the_map_depends_on_the_category_and_repeats_exactly(tiny: Backbone) -> None:
    first, again, other = (attention_segmenter(tiny, word)(PICTURE) for word in ("dog", "dog", "house"))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("category", ["House", "rocking-horse", "bear's", "\u623f\u5b50", "very " * 90 + "old dog"])
def test_any_category_is_looked_for_at_its_own_places(category: str, tiny: Backbone) -> None:
    soft = attention_segmenter(tiny, category)(PICTURE)
    assert np.isfinite(soft).all()
    assert soft.max() > soft.min()
