import io
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFilter, PngImagePlugin

from moongate import pocket
from moongate.data.folders import find_pictures
from moongate.data.pictures import (
    SAME_ABOVE,
    appearance,
    as_pixels,
    as_tensor,
    read_alpha,
    read_mask,
    read_mask_beside,
    read_picture,
    remarks,
)
from moongate.errors import MissingLibrary, MoongateWarning, PictureError


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "LAB", "I;16", "I", "F"])
def test_pictures_of_every_mode_are_read_with_their_brightness(tmp_path: Path, mode: str) -> None:
    gray = 200
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((20, 30), gray * 257, dtype=np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(np.full((20, 30), gray / 255, dtype=np.float32))
    else:
        plain = Image.new("RGB", (30, 20), (gray,) * 3)
        image = plain.quantize(2) if mode == "P" else lab(plain) if mode == "LAB" else plain.convert(mode)
    path = tmp_path / ("picture.jpg" if mode in ("CMYK", "YCbCr") else "picture.tiff")
    image.save(path)
    read = read_picture(path)
    assert (read.shape, read.dtype) == ((20, 30, 3), np.uint8)
    if mode != "1":
        assert np.abs(read.astype(int) - gray).max() <= 2


def lab(image: Image.Image) -> Image.Image:
    profiles = (ImageCms.createProfile(kind) for kind in ("sRGB", "LAB"))
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert converted is not None
    return converted


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_gray_whose_values_are_those_of_eight_bits_is_no_black_picture(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.full((20, 30), 200, dtype=dtype)).save(tmp_path / "gray.tiff")
    assert (read_picture(tmp_path / "gray.tiff") == 200).all()


def test_a_picture_that_is_a_mere_line_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8000)).save(tmp_path / "line.png")
    with pytest.raises(PictureError, match=r"line.png has 16 x 8000 pixels, and is too narrow.*Crop it"):
        read_picture(tmp_path / "line.png")
    Image.new("RGB", (16, 1536)).save(tmp_path / "strip.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = remarks([read_picture(tmp_path / "strip.png")], ["strip"])
    assert any("Crop it around the subject" in note for note in notes)


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    palette = Image.new("P", (20, 20), 0)
    palette.save(tmp_path / "clear.gif", transparency=0)
    assert (read_picture(tmp_path / "clear.png") == 255).all()
    assert (read_picture(tmp_path / "clear.gif") == 255).all()


def test_pictures_stand_upright_by_their_exif_tag(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (40, 20, 3)


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """The bytes of a color profile of version 2 (ICC.1:2001)."""
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags = {b"wtpt": white, b"cprt": b"text" + bytes(5), b"desc": b"desc" + struct.pack(">4xI3s78x", 3, b"own"), **tags}
    table, content, begin = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, begin + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    kind, connection = (b"prtr", b"Lab ") if space == b"CMYK" else (b"mntr", b"XYZ ")
    size = begin + len(content)
    header = struct.pack(">I4sI4s4s4s12x4s", size, b"", 0x02100000, kind, space, connection, b"acsp")
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + content


def display_p3() -> bytes:
    """The colors of Display P3, with a gamma of 2.2."""
    columns = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
    gamma = struct.pack(">4s4xIH", b"curv", 1, round(2.2 * 256))
    tags = {}
    for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags[letter + b"XYZ"] = struct.pack(">4s4x3i", b"XYZ ", *(round(value * 65536) for value in column))
        tags[letter + b"TRC"] = gamma
    return profile(b"RGB ", tags)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "transparent P"])
def test_colors_of_a_wide_gamut_are_read_as_those_of_srgb(tmp_path: Path, kind: str) -> None:
    image = Image.new("RGBA", (20, 20), (234, 51, 35, 255))  # the red of sRGB in Display P3
    is_clear = kind in ("RGBA", "transparent P")
    if is_clear:
        image.paste((0, 0, 0, 0), (10, 0, 20, 20))
    image = image.quantize(8) if kind == "transparent P" else image.convert(kind)
    image.save(tmp_path / "red.png", icc_profile=display_p3())
    read = read_picture(tmp_path / "red.png").astype(int)
    assert np.abs(read[:, :10] - (255, 0, 0)).max() <= 8
    if is_clear:
        assert (read[:, 10:] == 255).all()


def test_gray_and_cmyk_are_read_by_their_profiles(tmp_path: Path) -> None:
    linear = profile(b"GRAY", {b"kTRC": struct.pack(">4s4xIH", b"curv", 1, 256)})
    for mode in ("L", "LA"):
        Image.new("L", (20, 20), 55).convert(mode).save(tmp_path / "gray.png", icc_profile=linear)
        assert np.abs(read_picture(tmp_path / "gray.png").astype(int) - 127).max() <= 2  # 0.2158 ** (1 / 2.4), nearly
    tables = bytes([*range(256)] * 4) + bytes((255, 128, 128, 0, 128, 128) * 8) + bytes([*range(256)] * 3)
    one = struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    lut = b"mft1" + struct.pack(">4x4B", 4, 3, 2, 0) + one + tables
    Image.new("CMYK", (20, 20), (0, 0, 0, 128)).save(tmp_path / "ink.jpg", icc_profile=profile(b"CMYK", {b"A2B0": lut}))
    assert np.abs(read_picture(tmp_path / "ink.jpg").astype(int) - 119).max() <= 3  # half of CIELAB's lightness


@pytest.mark.parametrize("broken", ["cut", "zeros", "text", "of another kind"])
def test_a_picture_whose_profile_is_damaged_is_read_without_it(tmp_path: Path, broken: str) -> None:
    content = {
        "cut": display_p3()[:200],
        "zeros": display_p3()[:128] + bytes(len(display_p3()) - 128),
        "text": b"no profile",
        "of another kind": profile(b"GRAY", {b"kTRC": struct.pack(">4s4xIH", b"curv", 1, 256)}),
    }[broken]
    Image.new("RGB", (20, 20), (234, 51, 35)).save(tmp_path / "red.png", icc_profile=content)
    assert (read_picture(tmp_path / "red.png") == (234, 51, 35)).all()


def test_pictures_may_come_as_bytes(tmp_path: Path) -> None:
    Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
    content = (tmp_path / "red.png").read_bytes()
    assert (read_picture(content) == read_picture(tmp_path / "red.png")).all()
    with pytest.raises(PictureError, match="https://host/red.png is damaged"):
        read_picture(content[:60], name="https://host/red.png")


def test_heic_photos_are_read_with_the_extra_and_named_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 40))).save(tmp_path / "photo.heic")
    assert find_pictures(tmp_path) == [tmp_path / "photo.heic"]
    read = read_picture(tmp_path / "photo.heic")
    assert read.shape == (48, 64, 3)
    assert np.abs(read.mean((0, 1)) - (200, 40, 40)).max() < 6
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingLibrary, match=r"pip install '\.\[heic\]'"):
        read_picture(tmp_path / "photo.heic")


def test_masks_are_not_pictures_and_are_read_with_theirs(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo.jpg")
    mask = np.zeros((20, 40), dtype=np.uint8)
    mask[:, 30:] = 255
    Image.fromarray(mask).save(tmp_path / "photo.mask.png")
    assert find_pictures(tmp_path) == [tmp_path / "photo.jpg"]
    assert find_pictures([tmp_path / "photo.jpg", tmp_path / "photo.mask.png"]) == [tmp_path / "photo.jpg"]
    assert np.array_equal(read_mask_beside(tmp_path / "photo.jpg"), mask)
    (tmp_path / "photo.mask.png").unlink()
    assert read_mask_beside(tmp_path / "photo.jpg") is None


def test_a_mask_may_have_any_format_and_one_without_a_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo[1].jpg")
    Image.new("L", (40, 20), "white").save(tmp_path / "photo[1].mask.jpg")
    assert read_mask_beside(tmp_path / "photo[1].jpg").min() == 255
    Image.new("L", (40, 20), "white").save(tmp_path / "phot.mask.png")
    with pytest.raises(PictureError, match=r"mask .*phot.mask.png has no picture of its name"):
        find_pictures(tmp_path)


def test_a_mask_of_a_heic_photo_is_read_and_a_broken_photo_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(tmp_path / "photo.heic")
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])  # as before the first HEIC photo
    Image.new("L", (64, 48), "white").save(tmp_path / "photo.mask.png")
    assert read_mask_beside(tmp_path / "photo.heic").shape == (48, 64)
    (tmp_path / "broken.jpg").write_text("broken")
    Image.new("L", (64, 48), "white").save(tmp_path / "broken.mask.png")
    with pytest.raises(PictureError, match=r"broken.jpg is not a picture"):
        read_mask_beside(tmp_path / "broken.jpg")


def test_masks_of_other_proportions_or_that_show_nothing_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo.jpg")
    Image.new("L", (20, 40), "white").save(tmp_path / "photo.mask.png")
    with pytest.raises(PictureError, match=r"mask .* has 20 x 40 pixels and photo.jpg 40 x 20"):
        read_mask_beside(tmp_path / "photo.jpg")
    Image.new("L", (80, 40), "black").save(tmp_path / "photo.mask.png")
    with pytest.raises(PictureError, match="hides the whole picture"):
        read_mask_beside(tmp_path / "photo.jpg")
    Image.new("RGB", (1000, 1000), "red").save(tmp_path / "large.jpg")
    mask = Image.new("L", (1000, 1000), "black")
    mask.paste("white", (500, 500, 504, 504))
    mask.save(tmp_path / "large.mask.png")
    with pytest.raises(PictureError, match=r"is white in 0.002% of the picture, which is too little"):
        read_mask_beside(tmp_path / "large.jpg")
    mask.paste("white", (500, 500, 560, 560))
    mask.save(tmp_path / "large.mask.png")
    assert read_mask_beside(tmp_path / "large.jpg") is not None


def test_the_alpha_channel_is_a_mask_where_something_is_transparent(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 20), (9, 9, 9, 255))
    image.save(tmp_path / "solid.png")
    image.paste((0, 0, 0, 0), (0, 0, 20, 5))
    image.save(tmp_path / "cut.png")
    assert read_alpha(tmp_path / "solid.png") is None
    assert (read_alpha(tmp_path / "cut.png").mean(1) == [0] * 5 + [255] * 15).all()


@pytest.mark.parametrize("kind", ["I;16", "I", "F", "LA", "RGBA", "LAB", "values of 8 bits in 32"])
def test_a_mask_of_any_mode_is_white_where_it_is_painted(tmp_path: Path, kind: str) -> None:
    white = np.zeros((32, 32), dtype=bool)
    white[:16] = True
    if kind in ("LA", "RGBA"):
        image = Image.new(kind, (32, 32), "white")
        image.putalpha(Image.fromarray((white * 255).astype(np.uint8)))
    elif kind == "LAB":
        image = lab(Image.fromarray((white * 255).astype(np.uint8)).convert("RGB"))
    elif kind == "F":
        image = Image.fromarray(np.where(white, 1, 0.2).astype(np.float32))
    elif kind == "I;16":
        image = Image.fromarray(np.where(white, 65535, 13000).astype(np.uint16))
    else:
        image = Image.fromarray(np.where(white, 65535 if kind == "I" else 255, 40).astype(np.int32))
    image.save(tmp_path / "mask.tiff")
    assert np.array_equal(read_mask(tmp_path / "mask.tiff") >= 128, white)


def test_a_mask_of_an_edit_may_be_small_but_not_black(tmp_path: Path) -> None:
    mask = Image.new("L", (512, 512), "black")
    mask.save(tmp_path / "mask.png")
    with pytest.raises(PictureError, match=r"mask.png is black all over. Paint the place that may change white"):
        read_mask(tmp_path / "mask.png", is_taught=False)
    mask.paste("white", (100, 100, 108, 108))
    mask.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png", is_taught=False) == 255).sum() == 64
    with pytest.raises(PictureError, match="too little to learn from"):
        read_mask(tmp_path / "mask.png")


def example_pictures() -> list[np.ndarray]:
    return [read_picture(path) for path in find_pictures(pocket.example("teddyBear").training)]


def test_a_copy_in_another_size_and_format_is_recognized_and_other_views_are_not(tmp_path: Path) -> None:
    pictures = example_pictures()
    Image.fromarray(pictures[0]).resize((90, 90)).save(tmp_path / "again.jpg", quality=60)
    again = read_picture(tmp_path / "again.jpg")
    assert appearance(pictures[0]) @ appearance(again) > SAME_ABOVE
    assert max(appearance(pictures[0]) @ appearance(other) for other in pictures[1:]) < SAME_ABOVE
    names = [f"{index}.webp" for index in range(len(pictures))]
    assert remarks([*pictures, again], [*names, "again.jpg"]) == [
        "again.jpg shows the same as 0.webp. Different views teach more."
    ]


def test_blurred_pictures_are_pointed_out_and_sharp_ones_are_not() -> None:
    pictures = example_pictures()
    blurred = [np.array(Image.fromarray(p).filter(ImageFilter.GaussianBlur(3))) for p in pictures]
    names = [f"{index}.webp" for index in range(len(pictures))]
    assert remarks(pictures, names) == []
    assert sum("is blurred" in remark for remark in remarks(blurred, names)) == len(pictures)


def test_pixels_become_floats_between_minus_one_and_one_and_the_same_pixels_again() -> None:
    levels = np.arange(256, dtype=np.uint8)
    pictures = np.stack([np.broadcast_to(levels[:, None], (2, 256, 3)), np.zeros((2, 256, 3), np.uint8)])
    pictures.flags.writeable = False  # as numpy reads a picture from PIL
    images = as_tensor(pictures)
    assert images.shape == (2, 3, 2, 256)
    assert torch.equal(images[0, 1, 1], torch.arange(256) / 127.5 - 1)
    assert (images[0].min(), images[0].max(), images[1].max()) == (-1, 1, -1)
    assert (as_pixels(images) == pictures).all()
    assert torch.equal(as_tensor(pictures[0]), images[0])
    assert as_pixels(torch.full((3, 1, 2), 0.004)).tolist() == [[[128, 128, 128]] * 2]  # the nearest, not the one below


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(WITNESS) (w) file closefile showpage\n"
)


def test_numbers_that_are_not_finite_are_black_and_pointed_out() -> None:
    images = torch.zeros(3, 1, 4)
    images[:, 0, 1:] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    with pytest.warns(MoongateWarning, match="not finite, which are black in pictures"):
        pixels = as_pixels(images)
    assert pixels[0, :, 0].tolist() == [128, 0, 0, 0]


def test_a_picture_with_packed_texts_of_any_size_is_not_called_damaged(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png", pnginfo=texts)
    with pytest.raises(PictureError, match=r"a.png has packed texts of more than a megabyte"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "eps", "heic"])
def test_only_the_listed_formats_are_decoded_whatever_a_file_is_called(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pillow_heif")
    witness = tmp_path / "witness"
    content = POSTSCRIPT.replace(b"WITNESS", str(witness).encode())
    (tmp_path / f"0.{suffix}").write_bytes(content)
    Image.new("L", (64, 64), "white").save(tmp_path / "1.png")
    (tmp_path / f"1.mask.{suffix}").write_bytes(content)
    for read in (
        lambda: read_picture(tmp_path / f"0.{suffix}"),
        lambda: read_picture(content, name=f"shard.tar#0.{suffix}"),
        lambda: read_alpha(tmp_path / f"0.{suffix}"),
        lambda: read_mask_beside(tmp_path / "1.png"),
    ):
        with pytest.raises(PictureError, match=r"is not a picture that can be read \(JPEG, PNG"):
            read()
    assert not witness.exists()


def test_files_with_endings_of_other_formats_are_no_pictures_of_a_folder(tmp_path: Path) -> None:
    for suffix in ("png", "eps", "pdf", "ps", "psd", "fits"):
        Image.new("RGB", (20, 20)).save(tmp_path / f"a.{suffix}", format="PNG")
    with pytest.warns(MoongateWarning, match=r"not read: 1 \.eps, 1 \.fits, 1 \.pdf, 1 \.ps, 1 \.psd, such as a.eps"):
        assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def declared(width: int, height: int, *, depth: int = 8) -> bytes:
    """A PNG file of a few bytes that declares any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_500, 13_300, 20_000, 2**31 - 1])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(PictureError, match=r"is too large: it has more than 89 million pixels. Shrink it"):
        read_picture(declared(side, side, depth=16), name="huge.png")


def test_a_large_picture_is_converted_as_a_small_one_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (600, 20, 4), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "alpha.png")
    white = Image.new("RGBA", (20, 600), "white")
    expected = np.array(Image.alpha_composite(white, Image.fromarray(values)).convert("RGB"))
    assert np.array_equal(read_picture(tmp_path / "alpha.png"), expected)
    deep = np.random.default_rng(0).integers(0, 65536, (30, 20), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png")[..., 0], (deep / 257).round().astype(np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_damaged_picture_of_each_format_is_named(form: str) -> None:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50).convert("RGB").save(buffer, format=form)
    whole = buffer.getvalue()
    assert read_picture(whole, name="whole").shape == (64, 64, 3)
    random, said = np.random.default_rng(0), list[str]()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(int(random.integers(1, 9))):
            damaged[random.integers(len(damaged))] = random.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_picture(bytes(damaged[: random.integers(1, len(damaged) + 1)]), name="it.file")
            except PictureError as error:
                said.append(str(error))
    assert len(said) > 20
    assert [text for text in said if not text.startswith("it.file ")] == []


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    assert read_picture(content).shape == (64, 64, 3)
    scan = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(PictureError, match="more than 100 scans"):
        read_picture(content[:-2] + scan * 200 + content[-2:])


def test_a_picture_file_of_any_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for suffix in ("png", "webp", "tiff", "avif"):
        path = tmp_path / f"large.{suffix}"
        with path.open("wb") as file:
            file.truncate(20 * 2**30)  # takes no room on the disk
        with pytest.raises(PictureError, match="has more than 500 MB"):
            read_picture(path)


def test_a_file_without_content_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(PictureError, match=r"a.jpg is empty: it has 0 bytes. Copy it again or remove it."):
        read_picture(tmp_path / "a.jpg")
