import io
from pathlib import Path

import pytest
from rich.console import Console

from moongate.analysis.page import layer_name
from moongate.cli.terminal import print_table, progress_bar, readable, say, size_of, training_bar
from moongate.training import Step


def narrow() -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(file=shown, width=60, force_terminal=False), shown


def test_plain_lines_keep_paths_whole_and_brackets_as_they_are() -> None:
    console, shown = narrow()
    path = "/a/path/" + "longer-than-the-terminal/" * 4 + "[red]bear.safetensors"
    say(console, f"Wrote {path} with <bear>.")
    assert shown.getvalue() == f"Wrote {path} with <bear>.\n"


def test_a_table_keeps_the_words_of_its_head_whole() -> None:
    console, shown = narrow()
    print_table(console, ("layer", "constraints", "error elsewhere"), [("unet." * 20, "32", "[red]")], title="Layers")
    text = shown.getvalue()
    assert all(word in text for word in ("Layers", "constraints", "elsewhere", "[red]"))
    assert text.replace("\n", "").count("unet.") > 2


def test_rows_of_a_table_can_be_told_apart_on_80_columns() -> None:
    shown = io.StringIO()
    block = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2"
    names = [layer_name(f"{block}.{kind}.weight") for kind in ("to_k", "to_v")]
    print_table(
        Console(file=shown, width=80), ("layer", "rank", "error"), [(name, "12 of 320", "1%") for name in names]
    )
    lines = shown.getvalue().splitlines()
    assert all(any(name in line and "12 of 320" in line for line in lines) for name in names)
    assert len(set(names)) == 2
    shown = io.StringIO()
    row = ("<whiskers> cat", "0.0%", "70.1%", "12.5%", "30.0%")
    print_table(
        Console(file=shown, width=80),
        ("subject", "residual", "error elsewhere", "error together", "drift alone"),
        [row],
    )
    assert any("<whiskers>" in line and "70.1%" in line for line in shown.getvalue().splitlines())


@pytest.mark.parametrize(("size", "text"), [(900, "0.9 kB"), (2_400_000, "2.4 MB"), (3.2e9, "3.2 GB")])
def test_sizes_are_readable(size: float, text: str) -> None:
    assert readable(size) == text


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x" * 1500)
    assert size_of(tmp_path / "a") == "1.5 kB"
    assert size_of(tmp_path) == "3.0 kB"


def test_the_training_bar_shows_the_mean_loss_of_each_run_from_its_start() -> None:
    console, shown = narrow()
    with training_bar(console) as show:
        for loss in (3.0, 1.0):
            for index in (1, 2):
                show(_step(index, loss * index))
    assert "loss 1.500" in shown.getvalue()


def test_a_training_without_a_step_shows_no_bar() -> None:
    console, shown = narrow()
    with training_bar(console):
        pass
    assert "Training" not in shown.getvalue()


def _step(index: int, loss: float) -> Step:
    return Step(index=index, steps=2, loss=loss, target_loss=loss, prior_loss=0.0, pictures_per_second=8.0)


@pytest.mark.parametrize(
    "hidden", ["\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "\r", "\u202edog", "\ud800", "\x00", "\x7f"]
)
def test_text_from_files_reaches_the_terminal_without_escapes(hidden: str) -> None:
    console, shown = narrow()
    say(console, f"a {hidden} b")
    print_table(console, ("[/b]",), [(f"[/b] {hidden}",)], title=f"[/x] {hidden}")
    text = shown.getvalue()
    assert hidden not in text
    assert text.startswith(f"a {hidden.encode('unicode_escape').decode()} b")
    assert all(character.isprintable() or character == "\n" for character in text)
    assert text.count("[/b]") == 2


def test_a_bar_shows_markup_as_it_is() -> None:
    console, shown = narrow()
    with progress_bar(console) as progress:
        progress.add_task("Drawing [/b]", total=1, note="[/x]")
    assert "[/b]" in shown.getvalue()
