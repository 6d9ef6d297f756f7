"""Run commands as the shell does."""

import pytest

from moongate import cli


def run(*arguments: object) -> None:
    cli.main([str(argument) for argument in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with status 2 and return its message."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())
