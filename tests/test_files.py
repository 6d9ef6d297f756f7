import errno
import hashlib
import multiprocessing
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from moongate.errors import OptionError
from moongate.files import (
    append_lines,
    check_folder,
    check_writable,
    digest,
    exclusive,
    exists,
    file_name,
    free_stem,
    is_file,
    is_held,
    leads_out,
    locked,
    read_regular,
    remedy,
    replace_folder,
    try_lock,
    write_atomically,
)

WRITES = 60
SIZE = 50_000


def write_often(path: Path, letter: bytes) -> None:
    for _ in range(WRITES):
        write_atomically(path, letter * SIZE)


def count_up(path: Path) -> None:
    for _ in range(20):
        with locked(path):
            number = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(number + 1))


def test_two_processes_that_write_one_file_both_succeed_and_no_reader_sees_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "shared.bin"
    path.write_bytes(b"a" * SIZE)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(path, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == SIZE
        assert len(set(content)) == 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_processes_take_turns_with_what_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "count.txt"
    path.write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=count_up, args=(path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "40"


def test_a_lock_is_released_after_an_error_and_creates_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.bin"
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path):
        assert path.parent.is_dir()


def test_a_lock_that_cannot_be_created_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OptionError, match="cache could not be locked.*Check that you may write"),
        locked(tmp_path / "file" / "cache"),
    ):
        pass


def test_a_failed_write_keeps_the_earlier_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "concept.bin"
    write_atomically(path, b"earlier")

    def full(_source: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(OptionError, match="could not be written .No space left on device.; an earlier file"):
            write_atomically(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_source: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "usual").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "usual")}
    assert len(modes) == 1


def test_a_folder_and_an_existing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is a folder. Give the name of a file"):
        check_writable(tmp_path, overwrite=True)
    check_writable(tmp_path / "new", overwrite=False)
    (tmp_path / "old").touch()
    with pytest.raises(OptionError, match="exists already"):
        check_writable(tmp_path / "old", overwrite=False)
    check_writable(tmp_path / "old", overwrite=True)


def test_the_digest_is_sha_256_of_the_joined_parts() -> None:
    whole = hashlib.sha256(b"a\xc3\xa9b").hexdigest()
    assert digest("aé", b"b", length=64) == whole
    assert digest(b"a\xc3\xa9b") == whole[:12]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("<bear> teddy bear", "bear-teddy-bear"),
        ("../../etc/passwd", "etc-passwd"),
        ("плюшевый мишка", "плюшевый-мишка"),
        ("<>", "unnamed"),
        ("", "unnamed"),
        ("é" * 100, "é" * 60),
        ("a" + "é" * 100, "a" + "é" * 59),
    ],
)
def test_words_become_a_name_that_every_file_system_accepts(words: str, name: str) -> None:
    assert file_name(words) == name


def test_a_folder_is_replaced_and_the_earlier_one_is_gone(tmp_path: Path) -> None:
    for name in ("out", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_the_earlier_folder_stays_when_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    for name in ("out", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    rename = Path.rename

    def stop(source: Path, target: Path) -> Path:
        if source.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", stop)
    if not exchanges:
        monkeypatch.setattr("moongate.files._exchanged", lambda *_: False)
    with pytest.raises(OSError, match="Input/output error"):
        replace_folder(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out" / ("new" if exchanges else "out")).exists()


def test_a_lock_is_taken_without_waiting_or_not_at_all(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "new" / "job.lock")
    assert lock is not None
    assert try_lock(tmp_path / "new" / "job.lock") is None
    lock.release()
    again = try_lock(tmp_path / "new" / "job.lock")
    assert again is not None
    again.release()
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="could not be locked"):
        try_lock(tmp_path / "file" / "job.lock")


def test_a_folder_in_use_names_the_process_that_uses_it(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "run"),
        pytest.raises(OptionError, match=f"is in use by process {os.getpid()}. Wait until"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass


def test_looking_whether_a_folder_is_held_does_not_keep_another_from_holding_it(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    assert not list(tmp_path.iterdir())
    with exclusive(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    looking = FileLock(tmp_path / ".lock", thread_local=False)
    looking.acquire()
    threading.Timer(0.05, looking.release).start()
    with exclusive(tmp_path):
        assert is_held(tmp_path)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "Free some disk space, or choose another path."),
        (errno.EACCES, "Choose a path that you may read and write."),
        (errno.EINVAL, "Check the path."),
        (errno.ENAMETOOLONG, "Choose a shorter name."),
    ],
)
def test_only_a_full_disk_is_asked_to_be_freed(number: int, sentence: str) -> None:
    assert remedy(OSError(number, "")) == sentence


def test_a_place_that_is_no_folder_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="is not a folder that you may write into"):
        check_writable(tmp_path / "file" / "below" / "bear.safetensors", overwrite=False)


def test_a_regular_file_is_read_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    assert read_regular(tmp_path / "a", at_most=4) == b"1234"
    with pytest.raises(ValueError, match="at most 0 are read"):
        read_regular(tmp_path / "a", at_most=3)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            read_regular(path, at_most=4)


def test_a_link_leads_out_of_its_folder_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    links = {"in": "below", "self": "self", "out": "..", "far": "/etc/passwd", "beside": "../folder2", "lost": "gone"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    assert [name for name in links if leads_out(folder / name)] == ["out", "far", "beside"]
    assert not leads_out(folder / "below")


def test_a_name_that_no_file_can_have_does_not_exist(tmp_path: Path) -> None:
    assert exists(tmp_path)
    assert not any(exists(tmp_path / name) for name in ("gone", "x" * 30_000, "a\0b"))


def test_lines_are_added_behind_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.txt"
    append_lines(path, ["a", "b"])
    append_lines(path, ["ü"])
    assert path.read_text(encoding="utf-8") == "a\nb\nü\n"
    path.write_bytes(b"a\ncut")
    append_lines(path, ["b"])
    assert path.read_bytes() == b"a\ncut\nb\n"


def test_lines_of_several_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append_lines(path, [f"{n}" * 5000] * 3), range(10, 60)))
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{n}" * 5000 for n in range(10, 60) for _ in range(3))
    assert all(lines[at] == lines[at + 1] == lines[at + 2] for at in range(0, 150, 3))


def test_lines_that_cannot_be_added_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match="could not be written"):
        append_lines(tmp_path / "folder", ["a"])


def test_a_name_longer_than_any_names_no_file_and_cannot_be_written(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    assert not is_file(long)
    for check in (lambda: check_writable(long, overwrite=False), lambda: check_folder(long)):
        with pytest.raises(OptionError, match="File name too long.*Choose a shorter name"):
            check()


def test_a_free_name_differs_from_all_that_are_taken_in_more_than_capitals() -> None:
    assert free_stem("Bear", ["Cat"]) == "Bear"
    assert free_stem("Bear", ["Bear"]) == "Bear-2"
    assert free_stem("bear", {"Bear", "BEAR-2"}) == "bear-3"
