from pathlib import Path

import numpy as np
import pytest
import torch

from moongate.demo.recognizer import Classes, Recognizer, log_shares, recognized
from moongate.errors import OptionError

CLASSES = Classes(("red", "green", "blue"), ("here", "there"), ("photo", "drawing"))


@pytest.fixture
def recognizer() -> Recognizer:
    torch.manual_seed(0)
    recognizer = Recognizer(CLASSES, (4, 4, 8))
    recognizer(torch.randn(4, 3, 64, 64))  # moves the running statistics, so that they are not those of a new network
    return recognizer.eval().requires_grad_(False)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 48, 3), dtype=np.uint8)


def test_one_object_must_score_highest_and_two_must_be_the_first_two() -> None:
    scores = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [0, 2, 1, 3], [0, 2, 1, 3]])
    truth = [{0}, {1}, {1, 0}, {1, 3}, {1, 2}]
    assert recognized(scores, truth).tolist() == [True, False, True, True, False]


def test_a_saved_one_scores_the_same_to_half_precision(recognizer: Recognizer, tmp_path: Path) -> None:
    file = tmp_path / "shipped" / "model.safetensors"
    recognizer.save(file)
    again = Recognizer.load(file)
    assert again.classes == CLASSES
    assert not again.training
    assert {value.dtype for value in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again.scores(pictures(3)), recognizer.scores(pictures(3)), atol=0.02, rtol=0.01)
    weights = sum(value.numel() for value in recognizer.state_dict().values())
    assert file.stat().st_size < 2 * weights + 8000


def test_scores_are_those_of_images_in_minus_one_to_one(recognizer: Recognizer) -> None:
    several = pictures(101)  # more than one batch
    images = torch.from_numpy(several).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(recognizer.scores(several), recognizer(images), atol=1e-5, rtol=1e-5)


def test_what_it_sees_agrees_with_what_is_recognized(recognizer: Recognizer) -> None:
    scores = recognizer.scores(pictures(50))[:, :3]
    for names, numbers in ((("red",), {0}), (("blue", "red"), {2, 0})):
        seen = recognizer.sees(pictures(50), names)
        assert seen.shape == (50, len(names))
        assert torch.equal(seen.all(1), recognized(scores, [numbers] * 50))
    assert torch.equal(recognizer.sees(pictures(50), ("red", "blue")).flip(1), seen)


def test_an_object_is_found_wherever_it_stands(recognizer: Recognizer) -> None:
    """A picture shifted by a multiple of the stride has the same shares, if what leaves and enters is plain."""
    images = torch.zeros(2, 3, 256, 256)
    patch = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    images[0, :, 96:128, 96:128] = patch
    images[1, :, 128:160, 128:160] = patch
    here, there = recognizer(images)[:, :3]
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


def test_shares_are_those_of_all_cells_that_show_something() -> None:
    cells = torch.zeros(1, 3, 2, 2)
    cells[0, 0, 0, 0] = 0.9  # one cell shows the first category; its second guess is the third
    cells[0, 2, 0, 0] = 0.1
    cells[0, 1, 1, 1] = 0.6  # another cell shows the second category, or nothing with a probability of 0.4
    torch.testing.assert_close(log_shares(cells), torch.tensor([[0.9 / 1.6, 0.6 / 1.6, 0.1 / 1.6]]).log())
    assert recognized(log_shares(cells), [{0, 1}]).tolist() == [True]


def test_a_cell_counts_for_one_category_at_most(recognizer: Recognizer) -> None:
    images = torch.randn(5, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    cells, surroundings = recognizer.cells_and_surroundings(images)
    assert cells.shape == (5, 3, 8, 8)
    assert surroundings.shape == (5, 4)
    assert bool((cells.sum(1) < 1).all())
    torch.testing.assert_close(recognizer(images)[:, :3].exp().sum(1), torch.ones(5))


def test_an_unknown_category_is_named(recognizer: Recognizer) -> None:
    with pytest.raises(OptionError, match="does not know the category 'pink'. Known: red, green, blue"):
        recognizer.sees(pictures(1), ("red", "pink"))


def test_a_missing_or_strange_file_is_named_with_the_remedy(recognizer: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no recognizer .*absent.safetensors.*recipe.recognizer --out"):
        Recognizer.load(tmp_path / "absent.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(OptionError, match="text is not a recognizer"):
        Recognizer.load(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(OptionError, match="other.safetensors is not a recognizer"):
        Recognizer.load(tmp_path / "other.safetensors")
