import io

import numpy as np
from PIL import Image

from moongate.pages import SheetGroup, contact_sheet, grouped_sheet, png_bytes


def test_a_png_file_holds_the_very_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for content in (png_bytes(image), png_bytes(Image.fromarray(image))):
        assert np.array_equal(np.array(Image.open(io.BytesIO(content))), image)


def test_a_contact_sheet_holds_every_picture_in_order() -> None:
    images = [np.full((20, 30, 3), 40 * index, dtype=np.uint8) for index in range(5)]
    sheet = np.array(contact_sheet(images, columns=3, padding_px=2))
    assert sheet.shape == (2 * 22 + 2, 3 * 32 + 2, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        assert (sheet[2 + row * 22 + 10, 2 + column * 32 + 15] == 40 * index).all()
    assert contact_sheet(images, columns=3, labels=["a long label that wraps"] * 5).height > sheet.shape[0]


def test_a_row_of_a_contact_sheet_is_as_high_as_its_own_labels() -> None:
    images = [np.full((20, 30, 3), 40 * index, dtype=np.uint8) for index in range(4)]

    def sheet(*labels: str) -> np.ndarray:
        return np.array(contact_sheet(images, columns=2, labels=labels))

    bare, above, below, both = sheet("", "", "", ""), sheet("x", "", "", ""), sheet("", "", "x", ""), sheet(*"xxxx")
    line = both.shape[0] - above.shape[0]
    assert above.shape == below.shape
    assert above.shape[0] - bare.shape[0] == line > 0
    for drawn, moved in ((bare, 0), (below, 0), (above, line), (both, line)):
        assert (drawn[4 + 24 + moved : 4 + 44 + moved, 4:34] == 80).all()


def test_groups_begin_in_a_row_of_their_own_below_their_title() -> None:
    images = [np.full((20, 30, 3), 40 * index, dtype=np.uint8) for index in range(4)]
    first = SheetGroup(title="first", images=images[:3], labels=())
    second = SheetGroup(title="second", images=images[3:], labels=("seed 7",))
    sheet = np.array(grouped_sheet([first, second], columns=2, heading="both"))
    rows = {index: np.flatnonzero((sheet[:, 20] == 40 * index).all(1)) for index in (0, 2, 3)}
    assert [len(found) >= 20 for found in rows.values()] == [True] * 3
    assert rows[0][0] < rows[2][0] < rows[3][0]
    assert (sheet[rows[3][-20:], 4 + 34 : 4 + 64] == 255).all()


def test_labels_wrap_within_their_picture_even_without_spaces() -> None:
    images = [np.full((60, 60, 3), 255, dtype=np.uint8)] * 2
    sheet = np.array(contact_sheet(images, columns=2, labels=["averylongnameofaconcept.safetensors", ""]))
    assert (sheet[:, :64] < 128).any()
    assert (sheet[:, 64:] == 255).all()


def test_a_png_file_keeps_texts_in_any_script() -> None:
    content = png_bytes(np.zeros((2, 2, 3), dtype=np.uint8), texts={"parameters": "größer 猫"})
    assert Image.open(io.BytesIO(content)).info == {"parameters": "größer 猫"}
