import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from command_line import fails
from moongate.errors import OptionError
from moongate.studio.places import Places
from studio.browser import free_port

NOBODY = 65534


@contextlib.contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """Let the block run as a user whom permissions bind, and who owns the folder with all that is in it."""
    if os.getuid():
        yield
        return
    for place in (folder, *folder.rglob("*")):
        os.chown(place, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


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
    for path in ("gallery/.hidden.png", "gallery/none.png", "gallery", "n" * 300):
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


@pytest.mark.parametrize(
    ("closed", "mode"),
    [("open", 0o555), ("open/studio", 0o555), ("open/studio/gallery", 0o555), ("open", 0o000), ("watched", 0o000)],
    ids=["its-folder", "itself", "a-part", "hidden", "watched"],
)
def test_a_folder_without_the_permission_to_write_is_one_sentence_and_nothing_is_made(
    closed: str, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as made:
        top = Path(made).resolve()
        (top / "watched").mkdir()
        parts = {"open": "open", "watched": "open/studio"}.get(closed, "open/studio/gallery")
        (top / parts).mkdir(parents=True)
        # What is imported on first use may lie where only root can read.
        fails(capsys, "studio", "--folder", top / "other", "--watch", top / "nothing", "--port", free_port())
        (top / closed).chmod(mode)
        before = sorted(top.rglob("*"))
        try:
            with without_privileges(top):
                words = ("--folder", top / "open" / "studio", "--watch", top / "watched", "--port", free_port())
                message = fails(capsys, "studio", *words)
        finally:
            (top / closed).chmod(0o755)
        assert sorted(top.rglob("*")) == before
    assert message.startswith("error: ")
    assert message.count("error") == 1
    assert str(top / closed) in message
    assert any(remedy in message for remedy in ("Choose another path", "Choose a path", "Check the path"))


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
