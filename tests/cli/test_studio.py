import io
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from command_line import command, fails


@pytest.fixture(autouse=True)
def _without_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOONGATE_PASSWORD", raising=False)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_taken_port_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        message = fails(capsys, command("studio", folder=tmp_path / "s", port=taken.getsockname()[1]))
    assert "cannot listen on 127.0.0.1" in message
    assert not (tmp_path / "s").exists(), "nothing is made before it is clear that the studio can start"


def test_a_missing_library_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert "pip install '.[studio]'" in fails(capsys, command("studio", folder=tmp_path / "s"))


def test_a_folder_that_cannot_be_written_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(capsys, command("studio", folder=tmp_path / "file", port=free_port()))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_other_computers_need_a_password_before_anything_listens(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal that could be asked
    for given in (None, ""):
        if given is not None:
            monkeypatch.setenv("MOONGATE_PASSWORD", given)
        message = fails(capsys, command("studio", folder=tmp_path / "s", host=host, port=free_port()))
        assert "so the studio needs a password. Set the environment variable MOONGATE_PASSWORD" in message


def test_an_empty_password_is_named_though_only_this_computer_could_reach_the_studio(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONGATE_PASSWORD", "")
    message = fails(capsys, command("studio", folder=tmp_path / "s", port=free_port()))
    assert "The environment variable MOONGATE_PASSWORD is empty. Give it a password, or unset it." in message


@pytest.mark.parametrize(
    ("options", "message"),
    [({"host": "a..b"}, "The studio cannot listen on a..b, port "), ({"device": "gpu"}, "There is no device 'gpu'.")],
)
def test_a_host_and_a_device_that_cannot_be_are_named_before_the_studio_starts(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setenv("MOONGATE_PASSWORD", "sesame")
    assert message in fails(capsys, command("studio", folder=tmp_path / "s", port=free_port(), **options))
    assert not (tmp_path / "s").exists()


def test_a_password_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "password" not in " ".join(fails(capsys, command("studio", password="sesame")).split()[:3])


def test_the_studio_answers_and_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    port = free_port()
    words = ["studio", "--folder", str(tmp_path / "s"), "--port", str(port), "--json"]
    with subprocess.Popen([sys.executable, "-m", "moongate", *words], stderr=subprocess.PIPE) as process:
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                    assert b"Teach" in answer.read()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (0, 130)
