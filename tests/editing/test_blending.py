import numpy as np
import torch

from moongate.editing.blending import as_latent_mask, composed, word_mask


def test_a_picture_may_change_where_it_attends_to_a_word_and_next_to_it() -> None:
    maps = torch.zeros(2, 5, 5)
    maps[0, 1, 1], maps[0, 3, 4] = 1.0, 0.2
    masks = word_mask(maps, threshold=0.3)
    assert masks.shape == (2, 1, 5, 5)
    expected = torch.zeros(5, 5)
    expected[:3, :3] = 1
    assert torch.equal(masks[0, 0], expected)
    assert not masks[1].any(), "a picture without the word stays"


def test_a_cell_may_change_if_a_pixel_of_it_may() -> None:
    mask = np.zeros((16, 24), np.uint8)
    mask[9, 17] = 255
    assert as_latent_mask(mask, 8)[0].tolist() == [[0, 0, 0], [0, 0, 1]]


def test_pixels_that_may_not_change_are_those_of_the_picture() -> None:
    picture, edited = np.full((16, 16, 3), 10, np.uint8), np.full((16, 16, 3), 250, np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    everywhere = torch.ones(2, 2)
    result = composed(picture, edited, everywhere, mask=mask)
    assert (result[:, :8] == 10).all()
    assert (result[:, 8:] == 250).all()
    cells = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    soft = composed(picture, edited, cells, mask=None)
    assert (soft[:, :4] == 10).all()
    assert (soft[:, 12:] == 250).all()
    assert (np.diff(soft[0, :, 0].astype(int)) >= 0).all()
