import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moongate.files import exclusive
from moongate.studio.commands import Command, Commands


@pytest.fixture
def run(tmp_path: Path, pictures: Path) -> Path:
    """The folder of a run that has begun."""
    folder = tmp_path / "a.run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"backbone": "pocket"}))
    return folder


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    started = Commands(folder=tmp_path / "commands")
    yield started
    for child in started._children.values():
        child.wait()


def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def pid_of(commands: Commands, name: str) -> int:
    return int(json.loads((commands.folder / f"{name}.process").read_text())["pid"])


def test_a_command_is_shown_as_one_types_it() -> None:
    command = Command(("train", "my photos", "--token", "<bear>", "--category", "it's"))
    assert command.line == """moongate train 'my photos' --token '<bear>' --category 'it'"'"'s'"""


def test_how_a_command_ended_is_known_to_a_server_that_is_started_later(commands: Commands) -> None:
    well = commands.start(Command(("--version",)), name="version")
    badly = commands.start(Command(("nonsense",)), name="nonsense")
    assert well.state == "running"
    wait_for(lambda: all(each.state != "running" for each in commands.all()))
    later = Commands(folder=commands.folder)
    assert later.look(well.name).state == "finished"
    assert later.look(badly.name).state == "failed"
    assert "moongate 0" in later.look(well.name).printed
    assert "There is no command 'nonsense'" in later.look(badly.name).printed


def test_commands_that_take_turns_run_one_after_another_whatever_becomes_of_the_server_and_of_one_of_them(
    commands: Commands, tmp_path: Path, run: Path
) -> None:
    follow = Command(("measure", str(run), "--photos", str(tmp_path / "pictures"), "--follow"))
    with exclusive(run):  # the command goes on as long as this training does
        names = [commands.start(follow, name=f"draw-{n}", takes_turns=True).name for n in range(3)]
        aside = commands.start(Command(("--version",)), name="aside").name
        later = Commands(folder=commands.folder)  # another server

        def states() -> list[str]:
            return [later.look(name).state for name in names]

        wait_for(lambda: states() == ["running", "waiting", "waiting"])
        wait_for(lambda: later.look(aside).state == "finished")
        os.kill(pid_of(later, names[1]), signal.SIGTERM)
        wait_for(lambda: states() == ["running", "stopped", "waiting"])
        os.kill(pid_of(later, names[0]), signal.SIGKILL)
        wait_for(lambda: states() == ["failed", "stopped", "running"])
        os.kill(pid_of(later, names[2]), signal.SIGTERM)
        wait_for(lambda: states() == ["failed", "stopped", "stopped"])


def test_two_commands_of_one_name_are_kept_apart(commands: Commands) -> None:
    names = [commands.start(Command(("--version",)), name="a/../b").name for _ in range(2)]
    assert names == ["a-b", "a-b-2"]
    wait_for(lambda: all(each.state == "finished" for each in commands.all()))


@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, "stopped"), (signal.SIGKILL, "failed")])
def test_a_command_goes_on_without_the_server_and_its_end_is_seen_however_it_ends(
    commands: Commands, tmp_path: Path, run: Path, number: signal.Signals, state: str
) -> None:
    command = Command(("measure", str(run), "--photos", str(tmp_path / "pictures"), "--follow"))
    with exclusive(run):  # a training that goes on, which the command follows
        started = commands.start(command, name="measure")
        later = Commands(folder=tmp_path / "commands")
        wait_for((tmp_path / "commands" / "measure.process").exists)
        assert later.look(started.name).state == "running"
        pid = pid_of(later, started.name)
        assert os.getsid(pid) == pid, "a session of its own, which Ctrl-C in the server's terminal does not reach"
        os.kill(pid, number)
        wait_for(lambda: later.look(started.name).state != "running")
    assert later.look(started.name).state == commands.look(started.name).state == state
