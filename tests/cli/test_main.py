import errno
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moongate
from command_line import Command, command, fails, run
from moongate.__main__ import WAITING, main
from moongate.concept import Concept
from moongate.run_page import Album
from original_layout import write_configuration, write_single_file

COMMANDS = (
    "train",
    "generate",
    "edit",
    "masks",
    "merge",
    "compress",
    "info",
    "convert",
    "retrieve",
    "retrieve index",
    "retrieve search",
    "evaluate",
    "judge",
    "judge make",
    "judge add",
    "judge results",
    "analyze",
    "captions",
    "fleet",
    "measure",
    "studio",
    "demo",
    "demo single",
    "demo compose",
    "tokens",
    "tokens suggest",
)
WIDTH = 80
MARGIN = 2
"""Columns on each side of the help's boxes."""
SENTENCE_ENDS = (".", ":", ")")


def help_of(words: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the help as a terminal of 80 columns shows it."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as stopped:
        run(*words.split(), "--help")
    assert stopped.value.code == 0
    terminal.flush()
    return terminal.buffer.getvalue().decode()


@pytest.mark.parametrize("words", ["", *COMMANDS])
def test_help_fits_80_columns_and_breaks_lines_only_after_a_sentence(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, _, rest = help_of(words, monkeypatch).partition("\n")
    assert usage.startswith(f"usage: moongate {words}".rstrip())
    lines = rest.splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    assert [line for line in lines if not line.strip("│ ") and line] == []
    for line, following in itertools.pairwise(line.replace("│", " ").rstrip() for line in lines):
        column = len(following) - len(following.lstrip())
        continues = column > MARGIN and re.match(r"  \S", line[column - 2 : column + 1])
        if continues and not line.endswith(SENTENCE_ENDS):
            word = following.split()[0]
            assert len(line) + 1 + len(word) > WIDTH - MARGIN, f"{line.strip()} / {following.strip()}"


@pytest.mark.parametrize("words", COMMANDS)
def test_each_option_of_each_command_is_explained(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.replace("│", " ") for line in help_of(words, monkeypatch).splitlines()]
    options = [number for number, line in enumerate(lines) if re.match(r"  (--?\w|\[?[A-Z])", line)]
    assert options
    for number in options:
        name, *text = re.split(r"  +", lines[number].strip())
        explained = text[0] if text else lines[number + 1].strip()
        assert "{None}" not in name
        assert explained[:1].isalnum() or explained[:1] == '"', f"{words} {name} has no help"


def test_two_word_commands_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {words: re.findall(r"• (\S+)", help_of(words, monkeypatch)) for words in ("", "retrieve", "demo")}
    assert {words for words in COMMANDS if " " not in words} == set(listed[""])
    assert listed["retrieve"] == ["index", "search"]
    assert listed["demo"] == ["single", "compose"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Expected one of {train, generate"),
        (["trian"], "There is no command 'trian'. Did you mean 'train'?"),
        (["nonsense", "--help"], "There is no command 'nonsense'. Known: train, generate, "),
        (["teach"], "There is no command 'teach'. Known: train, generate, "),
        (["retrieve"], "Expected one of {index, search}"),
        (["retrieve", "photo of a dog"], "There is no command 'retrieve photo of a dog'. Known: index, search."),
        (["demo", "copmose"], "There is no command 'demo copmose'. Did you mean 'compose'?"),
        (["train", "--setps", "3"], "Perhaps you meant: --steps INT"),
        (["train", "--steps", "many"], "--steps: 'many' is not a whole number."),
        (["compress", "bear.safetensors"], "Missing from moongate compress: --out PATH"),
    ],
)
def test_bad_usage_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(word for word in fails(capsys, *words).split() if word != "│")
    assert message in shown
    assert "NoneType" not in shown


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    assert capsys.readouterr().out == f"moongate {moongate.__version__}\n"


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed:
        """Finds no module, but is interrupted."""

        def find_spec(self, name: str, *_more: object) -> None:
            if name.startswith("moongate.cli"):
                raise KeyboardInterrupt

    for name in [name for name in sys.modules if name.startswith("moongate.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(moongate, "cli")
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # which main would leave behind
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WAITING:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["moongate", "--version"])
    main()
    assert {name: os.environ[name] for name in WAITING & os.environ.keys()} == (own or {"GOMP_SPINCOUNT": "1000"})


def test_the_library_leaves_the_environment_alone() -> None:
    code = "import os; before = dict(os.environ); import moongate; moongate.Backbone; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], check=True)


def modules_after(words: list[str], *, status: int = 0) -> set[str]:
    """Run a command line in a process of its own; return the libraries that it imported."""
    code = f"""
import runpy, sys
sys.argv[1:] = {words}
try:
    runpy.run_module("moongate", run_name="__main__")
except SystemExit as stopped:
    assert (stopped.code or 0) == {status}, stopped.code
print("MODULES", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "moongate" in done.stdout + done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


HEAVY = {"torch", "transformers", "diffusers", "numpy", "PIL", "huggingface_hub"}


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--help"], 0), (["train", "--help"], 0), (["--version"], 0), (["trian"], 2), (["train", "--setps", "3"], 2)],
)
def test_help_and_errors_in_usage_load_no_heavy_library(words: list[str], status: int) -> None:
    assert not HEAVY & modules_after(words, status=status)


def test_info_of_a_concept_file_loads_no_pytorch(bear: Path) -> None:
    assert not {"torch", "transformers", "diffusers", "PIL"} & modules_after(["info", str(bear)])


def test_converting_to_factors_loads_no_model_libraries(bear: Path, tmp_path: Path) -> None:
    words = ["convert", str(bear), "--to", "kohya", "--out", str(tmp_path / "kohya")]
    assert not {"transformers", "diffusers"} & modules_after(words)


def test_a_merge_without_a_report_loads_neither_model_libraries_nor_pillow(tmp_path: Path) -> None:
    words = ["merge", "--erase", "snowman=>tree", "--out", str(tmp_path / "edit.safetensors")]
    assert not {"transformers", "diffusers", "PIL"} & modules_after(words)


def test_a_reader_that_ends_early_ends_the_program_quietly() -> None:
    command = [sys.executable, "-m", "moongate", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_completion_knows_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("--tyro-write-completion", "bash", tmp_path / "moongate")
    assert not stopped.value.code
    script = (tmp_path / "moongate").read_text()
    assert "complete " in script
    assert all(word in script for word in ("moongate", "train", "--validate-every", "retrieve", "search", "--top-up"))


def test_json_is_one_object_and_quiet_prints_nothing(
    train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    run(train.but(json=True))
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["out"], report["steps"]) == (str(train.options["out"]), 3)
    assert "Draw it with" in printed.err
    quiet = {"overwrite": True, "quiet": True}
    run(train.but(**quiet))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert {line.partition(" ")[0] for line in printed.err.splitlines()} == {"warning:"}
    run(command("compress", report["out"], out=tmp_path / "small.safetensors", **quiet))
    assert capsys.readouterr() == ("", "")
    run(command("compress", report["out"], out=tmp_path / "small.safetensors", json=True, **quiet))
    printed = capsys.readouterr()
    assert printed.err == ""
    assert 0 < json.loads(printed.out)["error"] < 1


def test_errors_in_square_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "[red]cat.safetensors" in fails(capsys, command("info", tmp_path / "[red]cat.safetensors"))


def test_a_full_disk_is_named_without_a_traceback(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a-dog-0.png"))

    monkeypatch.setattr("moongate.files.write_atomically", full)
    draw = command("generate", "a dog", model=tiny_folder, count=1, steps=1, out=tmp_path / "drawn")
    assert "a-dog-0.png: No space left on device. Free some disk space" in fails(capsys, draw)


def test_every_command_works_on_every_family(
    family_folder: Path, pictures: Path, regularization: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = command("train", pictures, model=family_folder, regularization=regularization, device="cpu")
    train = train.but(steps=2, batch=1, validate_every=2)
    files = [tmp_path / "bear.safetensors", tmp_path / "cat.safetensors"]
    for number, file in enumerate(files):
        run(train.but(category=file.stem, token=f"<{file.stem}>", rare_token=number, out=file))
        assert [each.step for each in Album(file.with_suffix(".run")).drawn("validation")].count(2) == 4
    capsys.readouterr()
    run(command("info", files[0], json=True))
    assert json.loads(capsys.readouterr().out)["tokens"] == ["<bear>"]
    both, small = tmp_path / "both.safetensors", tmp_path / "small.safetensors"
    run(command("merge", *files, contexts=1, out=both, device="cpu"))
    run(command("compress", both, out=small))
    draw = command("generate", "photo of a <bear> bear and a <cat> cat", count=1, steps=2, device="cpu")
    for file in (both, small):
        assert Concept.load(file).token_widths == Concept.load(files[0]).token_widths
        run(draw.but(concept=file, out=tmp_path / file.stem))
        assert len(list((tmp_path / file.stem).glob("*-0.png"))) == 1


def test_a_single_file_with_its_configuration_goes_through_the_commands(
    family_folder: Path, pictures: Path, regularization: Path, tmp_path: Path
) -> None:
    model = write_single_file(family_folder, tmp_path / "base.safetensors")
    loading = {"config": write_configuration(family_folder, tmp_path / "configuration"), "device": "cpu"}
    out, drawn = tmp_path / "bear.safetensors", tmp_path / "drawn"
    train = command("train", pictures, category="bear", token="<bear>", model=model, regularization=regularization)
    run(train.but(steps=1, batch=1, out=out, **loading))
    run(command("generate", "a <bear> bear", concept=out, count=1, steps=1, out=drawn, **loading))
    assert (drawn / "a-bear-bear-0.png").is_file()


@pytest.mark.parametrize("form", [["--out", "~/a.bin"], ["--out=~/a.bin"]])
def test_the_tilde_is_the_home_folder_also_where_the_shell_leaves_it(
    form: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert f"--out is {tmp_path / 'a.bin'}" in fails(capsys, "train", "photos", "--category", "dog", *form)


def test_help_is_laid_out_also_where_a_terminal_has_hardly_a_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "5")
    with pytest.raises(SystemExit) as stopped:
        run("retrieve", "--help")
    assert stopped.value.code == 0
    assert "usage: moongate retrieve" in capsys.readouterr().out
    assert os.environ["COLUMNS"] == "5"


def test_a_closed_standard_output_is_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a shell closes it by >&-."""
    monkeypatch.setattr(sys, "stdout", None)
    run("--version")
    for words, code in ((["info", tmp_path / "nothing.safetensors"], 2), (["judge", "--help"], 0), (["judge"], 2)):
        with pytest.raises(SystemExit) as stopped:
            run(*words)
        assert stopped.value.code == code
