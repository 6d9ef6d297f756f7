import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from moongate.errors import OptionError
from moongate.studio.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "watched").mkdir()
    return Places.open(tmp_path / "studio", (tmp_path / "watched",))


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "concepts/../../secret", "a\0b", "../studio-other/x"])
def test_nothing_outside_of_the_chosen_folders_is_reached(places: Places, path: str) -> None:
    with pytest.raises(OptionError):
        places.inside(path)
    with pytest.raises(OptionError):
        places.located(0, path)


def test_a_link_that_leads_out_is_not_followed(places: Places, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (places.gallery / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(OptionError, match="is not in"):
        places.located(0, "gallery/link.png")


def test_watched_folders_are_read_and_not_written(places: Places) -> None:
    watched = places.watched[0]
    assert places.inside(watched / "a.png") == watched / "a.png"
    with pytest.raises(OptionError, match="is not in"):
        places.inside(watched / "a.png", to_write=True)


def test_the_address_of_a_file_leads_back_to_it_and_changes_with_it(places: Places) -> None:
    file = places.watched[0] / "a b#?%.png"
    file.write_bytes(b"1")
    address = places.address(file)
    number, _, path = address.partition("?")[0].removeprefix("/files/").partition("/")
    assert places.located(int(number), unquote(path)) == file
    os.utime(file, ns=(1, 1))
    assert places.address(file) != address


def test_hidden_files_and_missing_ones_are_not_handed_out(places: Places) -> None:
    (places.gallery / ".hidden.png").write_bytes(b"1")
    for path in ("gallery/.hidden.png", "gallery/none.png", "gallery"):
        with pytest.raises(OptionError, match="There is no file"):
            places.located(0, path)
    with pytest.raises(OptionError, match="There is no folder 7"):
        places.located(7, "gallery/none.png")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="is a file"):
        Places.open(tmp_path / "file")
    with pytest.raises(OptionError, match="There is no folder"):
        Places.open(tmp_path / "studio", (tmp_path / "missing",))


def test_runs_of_the_shell_are_found_and_what_is_in_the_trash_is_not(places: Places) -> None:
    for folder in (
        places.concepts / "a.run",
        places.root / "b.run",
        places.watched[0] / "c.run",
        places.trash / "d.run",
    ):
        folder.mkdir()
        for name in ("config.json", "log.jsonl"):
            (folder / name).write_text("{}")
    assert {run.name for run in places.runs()} == {"a.run", "b.run", "c.run"}
