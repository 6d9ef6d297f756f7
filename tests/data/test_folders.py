import os
import time
from pathlib import Path

import pytest
from PIL import Image

from moongate.data.folders import contents, find_pictures, gather, masks_beside, masks_of
from moongate.errors import MoongateWarning, PictureError


def picture(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (20, 20), "red").save(folder / name, format="PNG")


def test_masks_and_control_pictures_of_other_trainers_are_no_photos(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", "b.jpg", "a-masklabel.png", "b-MaskLabel.PNG", "a-condlabel.png", "b_depth.png")
    picture(tmp_path, "b-mask.png", "a.canny.png", "pool_depth.png", "unmask.png")
    with pytest.warns(MoongateWarning, match="Ignored .*: a-condlabel.png; a.canny.png; b-mask.png; b_depth.png."):
        photos = find_pictures(tmp_path)
    assert [path.name for path in photos] == ["a.png", "b.jpg", "pool_depth.png", "unmask.png"]
    assert [mask.name for mask in masks_beside(tmp_path / "b.jpg")] == ["b-MaskLabel.PNG"]
    with pytest.warns(MoongateWarning, match="b_depth.png"):
        assert find_pictures([tmp_path / "b.jpg", tmp_path / "b_depth.png"]) == [tmp_path / "b.jpg"]
    assert find_pictures(tmp_path / "b_depth.png") == [tmp_path / "b_depth.png"], "alone it is a photo of such a name"


def test_a_mask_without_a_picture_is_refused_whatever_its_format(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", "c-masklabel.png")
    with pytest.raises(PictureError, match=r"mask .*c-masklabel.png has no picture of its name"):
        find_pictures(tmp_path)
    (tmp_path / "c-masklabel.png").rename(tmp_path / "c.mask.psd")
    with pytest.raises(PictureError, match=r"mask .*c.mask.psd has no picture of its name"):
        find_pictures(tmp_path)


def test_the_mask_of_a_photo_is_not_that_of_another_in_other_case(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", "A.png", "a.mask.png")
    assert masks_beside(tmp_path / "A.png") == []
    assert masks_beside(tmp_path / "a.png") == [tmp_path / "a.mask.png"]
    picture(tmp_path, "a-masklabel.png")
    assert len(masks_beside(tmp_path / "a.png")) == 2


def test_files_of_unknown_kind_are_counted_and_known_ones_passed_over(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    for name in ("1.dng", "2.DNG", "3.jxl", "film.mp4", "rows.parquet", "tags.json"):
        (tmp_path / name).write_bytes(b"0")
    for name in ("a.npz", "a_0512x0512_sd.npz", "a.xmp", ".DS_Store", "Thumbs.db", "README.txt", "settings.json"):
        (tmp_path / name).write_bytes(b"0")
    with pytest.warns(MoongateWarning, match=r"not read: 2 .dng, 1 .json, 1 .jxl, 1 .mp4, 1 .parquet, such as 1.dng"):
        assert find_pictures(tmp_path) == [tmp_path / "a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(PictureError, match=r"holds no pictures \(2 .dng, 1 .json, .* cannot be read\). Put JPEG"):
        find_pictures(tmp_path)


def test_what_the_mac_writes_beside_each_file_is_no_photo_and_no_mask(tmp_path: Path) -> None:
    """On disks of other systems, and in archives, macOS puts `._a.jpg` beside `a.jpg` and shows it to nobody."""
    picture(tmp_path, "a.jpg", "a.mask.png")
    for name in ("._a.jpg", "._a.mask.png", "._a.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    here = gather(tmp_path).folders[0]
    assert (here.photos, here.masks, here.captions) == ((tmp_path / "a.jpg",), (tmp_path / "a.mask.png",), ())
    assert masks_beside(tmp_path / "a.jpg") == [tmp_path / "a.mask.png"]


def test_hidden_pictures_are_ignored_unless_they_are_named(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", ".trashed-1700000000-b.png", ".c.mask.png")
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]
    named = tmp_path / ".trashed-1700000000-b.png"
    assert find_pictures([named]) == [named]


def test_the_masks_of_many_photos_are_those_of_each(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", "A.png", "b.jpg", "c.png", "a.mask.png", "b-masklabel.png", "B.mask.png")
    picture(tmp_path / "d", "a.png", "A.mask.png")
    photos = [path for path in tmp_path.rglob("?.*") if path.is_file()]
    assert masks_of(photos) == {photo: masks_beside(photo) for photo in photos}
    assert masks_of(photos)[tmp_path / "d" / "a.png"] == [tmp_path / "d" / "A.mask.png"]


def test_a_large_folder_is_looked_at_in_a_moment(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}.txt").touch()
    begin = time.process_time()
    here = contents(tmp_path)
    assert len(here.photos) == len(here.captions) == len(masks_of(here.photos)) == 3000
    assert time.process_time() - begin < 3, "for each photo, all files were looked at"


def test_a_photo_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", "b.png")
    assert find_pictures([tmp_path / "b.png", tmp_path, tmp_path / "b.png"]) == [tmp_path / "b.png", tmp_path / "a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_named_like_a_photo_and_is_no_file_is_reported(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("c.png")
    with pytest.warns(MoongateWarning, match=r"not read: 2 .png, such as b.png"):
        assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def test_kohyas_folders_are_read_once_and_their_repeats_reported(tmp_path: Path) -> None:
    picture(tmp_path / "10_sks dog", "a.png", "b.png")
    picture(tmp_path / "5_sks dog", "c.png", "c-masklabel.png")
    with pytest.warns(MoongateWarning, match=r"'10_sks dog' \(2 pictures\); '5_sks dog' \(1 picture\).*is ignored"):
        gathered = gather(tmp_path)
    assert [path.name for path in gathered.photos] == ["a.png", "b.png", "c.png"]
    assert [folder.folder for folder in gathered.folders] == [tmp_path, tmp_path / "10_sks dog", tmp_path / "5_sks dog"]


def test_a_folder_with_pictures_in_other_subfolders_names_these(tmp_path: Path) -> None:
    picture(tmp_path / "dogs" / "red", "a.png", "b.png")
    picture(tmp_path / "cats", "c.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PictureError, match=r"itself, but its subfolders do: 'cats' \(1\); 'dogs/red' \(2\)"):
        find_pictures(tmp_path)
    picture(tmp_path, "d.png")
    with pytest.warns(MoongateWarning, match=r"subfolders of .* are not read: 'cats' \(1 picture\)"):
        assert find_pictures(tmp_path) == [tmp_path / "d.png"]


def test_contents_are_sorted_by_kind(tmp_path: Path) -> None:
    picture(tmp_path, "b.png", "a.png", "a.mask.png", "a_seg.png")
    for name in ("a.TXT", "a.caption", "Metadata.CSV", "metadata.jsonl", "x.bin"):
        (tmp_path / name).write_text("")
    here = contents(tmp_path)
    names = [[path.name for path in kind] for kind in (here.photos, here.masks, here.companions, here.unread)]
    assert names == [["a.png", "b.png"], ["a.mask.png"], ["a_seg.png"], ["x.bin"]]
    assert [path.name for path in here.captions] == ["a.TXT", "a.caption"]
    assert [path.name for path in here.listings] == ["metadata.jsonl", "Metadata.CSV"]


@pytest.mark.parametrize("name", ["1.png", "0.mask.png", "0.txt", "metadata.jsonl", "10_dog"])
def test_links_that_lead_out_of_a_folder_are_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder, "0.png")
    picture(tmp_path, "private.png")
    (folder / name).symlink_to(tmp_path if name == "10_dog" else tmp_path / "private.png")
    with pytest.raises(PictureError, match=f"{name} is a link that leads out of its folder"):
        gather(folder)
    assert contents(folder).outside == (folder / name,)


def test_links_within_a_folder_and_links_that_the_user_names_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder, "0.png")
    (folder / "1.png").symlink_to("0.png")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "one.png").symlink_to(folder / "0.png")
    assert [path.name for path in find_pictures([tmp_path / "link", tmp_path / "one.png"])] == [
        "0.png",
        "1.png",
        "one.png",
    ]
