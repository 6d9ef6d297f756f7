"""Build command lines from named options, and run them as the shell does."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from moongate import cli


@dataclass(frozen=True)
class Command:
    """A command line: words such as "retrieve search", positional arguments, and options by name."""

    words: str
    positional: tuple[object, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def but(self, *positional: object, **options: Any) -> "Command":
        """Return the command with other positional arguments, if any are given, and with these options changed."""
        return replace(self, positional=positional or self.positional, options={**self.options, **options})

    def without(self, *names: str) -> "Command":
        return replace(self, options={name: value for name, value in self.options.items() if name not in names})

    def arguments(self) -> list[str]:
        """True is a flag, a list repeats its option, a tuple gives several values after one."""
        arguments = [*self.words.split(), *map(str, self.positional)]
        for name, value in self.options.items():
            option = "--" + name.replace("_", "-")
            for values in value if isinstance(value, list) else [value]:
                several = values if isinstance(values, tuple) else () if values is True else (values,)
                arguments += [option, *map(str, several)]
        return arguments


def command(words: str, *positional: object, **options: Any) -> Command:
    """`command("train", folder, category="bear", overwrite=True)`. `from_` is the option --from."""
    return Command(words, positional, {name.rstrip("_"): value for name, value in options.items()})


def run(*arguments: object) -> None:
    """Run a command, or words of a command line."""
    cli.main([word for each in arguments for word in (each.arguments() if isinstance(each, Command) else [str(each)])])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end with status 2 and return its message."""
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())
