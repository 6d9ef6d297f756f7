import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moongate.errors import OptionError
from moongate.run_page import Album, Drawn, duration, page_of
from moongate.training.runs import Run

CONFIG = {
    "backbone": "pocket",
    "dtype": "torch.float32",
    "device": "cpu",
    "subjects": [{"category": "bear", "token": "<b&r>"}],
    "regularization": [{"pictures": 5, "source": "pool"}],
    "method": {"name": "custom-diffusion"},
    "batch": 4,
    "steps": 30,
    "learning_rate": 0.00096,
    "seed": 0,
}


def write_run(folder: Path, *, steps: int, losses: float = 0.2, **more: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    lines = [
        {"index": index, "target_loss": losses, "prior_loss": 2 * losses, "pictures_per_second": 8.0, **more}
        for index in range(1, steps + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def html(folder: Path, status: str = "running") -> str:
    page_of(folder, status).save(folder / "index.html")
    return (folder / "index.html").read_text()


def add(album: Album, color: int, **facts: object) -> None:
    album.add(Drawn(**{"prompt": "a bear", "seed": 0, **facts}), np.full((16, 16, 3), color, dtype=np.uint8))


def test_the_page_says_how_far_the_run_is_and_how_long_it_takes(tmp_path: Path) -> None:
    write_run(tmp_path, steps=10)
    page = html(tmp_path)
    assert "step 10 of 30, 8.0 pictures a second, about 20 seconds left" in page, "20 steps of 8 pictures at 8 a second"
    assert "Teaching pocket &lt;b&amp;r&gt; bear" in page
    assert "Stopped after step 10 of 30" in html(tmp_path, "stopped")


def test_only_the_page_of_a_running_training_is_loaded_again_and_none_loads_anything_else(tmp_path: Path) -> None:
    write_run(tmp_path, steps=10)
    add(Album(tmp_path), 9, part="validation", step=5)
    pages = {status: html(tmp_path, status) for status in ("running", "stopped", "finished")}
    assert [status for status, page in pages.items() if 'http-equiv="refresh"' in page] == ["running"]
    for page in pages.values():
        assert not re.search(r"""(src|href)=["'](?!data:)""", page)
        assert "url(" not in page
        assert all('alt="' in image for image in re.findall("<img[^>]*>", page))


def test_after_the_last_step_the_page_says_what_the_training_does_then(tmp_path: Path) -> None:
    write_run(tmp_path, steps=10)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "steps": 11}))
    assert "Running: step 10 of 11" in html(tmp_path, "running")
    (tmp_path / "config.json").write_text(json.dumps({**config, "steps": 10}))
    assert "All 10 steps are done. Pictures of base and concept are being drawn." in html(tmp_path, "running")


def test_a_line_of_the_log_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, steps=10)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"index": 11, "targ')
    assert "step 10 of 30" in html(tmp_path)


def test_a_run_without_a_step_has_a_page_too(tmp_path: Path) -> None:
    write_run(tmp_path, steps=0)
    assert "The curve begins with the second step" in html(tmp_path)
    with pytest.raises(OptionError, match="holds no records of a run"):
        page_of(tmp_path / "nowhere", "running")


def test_both_losses_have_a_smooth_line_over_their_points(tmp_path: Path) -> None:
    write_run(tmp_path, steps=20)
    page = html(tmp_path)
    assert page.count('class="dot-0"') == page.count('class="dot-1"') == 20
    lines = re.findall(r'<polyline class="line-[01]" points="([\d., ]+)"><title>', page)
    assert [len(line.split()) for line in lines] == [20, 20]


def test_a_long_run_has_a_chart_of_bounded_size(tmp_path: Path) -> None:
    write_run(tmp_path, steps=3000)
    assert html(tmp_path).count('class="dot-0"') == 500


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path: Path) -> None:
    write_run(tmp_path, steps=20)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    lines[7] = lines[7].replace("0.2", "NaN", 1)
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    page = html(tmp_path)
    assert page.count('class="dot-0"') == 19
    assert "nan" not in page.lower()


def test_a_run_without_regularization_has_one_curve(tmp_path: Path) -> None:
    write_run(tmp_path, steps=20, prior_loss=0.0)
    page = html(tmp_path)
    assert "target pictures" in page
    assert ">regularization pictures</li>" not in page


def test_held_out_losses_and_left_out_steps_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path, steps=4, held_out_loss=0.25, skipped_steps=3)
    page = html(tmp_path)
    assert "lowest at step 1: 0.2500" in page
    assert "3 steps changed nothing" in page


def test_pictures_stand_in_the_order_of_the_story(tmp_path: Path) -> None:
    write_run(tmp_path, steps=30)
    album = Album(tmp_path)
    add(album, 1, part="validation", step=20, prompt="a <b> bear")
    add(album, 2, part="validation", step=0, prompt="a bear")
    add(album, 3, part="comparison", step=1, place=1, prompt="a <b> bear in snow")
    add(album, 4, part="comparison", step=0, place=1, prompt="a bear in snow")
    add(album, 5, part="taught", step=0, prompt="a caption")
    page = html(tmp_path, "finished")
    texts = ["Finished after 30", "Taught from", "a caption", "Before and after", "before, seed 0", "after, seed 0"]
    texts += ["During the training", "The base model: a bear", "Step 20: a &lt;b&gt; bear", "Loss", "Settings"]
    places = [page.index(text) for text in texts]
    assert places == sorted(places)


def test_an_album_replaces_a_picture_that_is_drawn_again_and_a_new_run_removes_it(tmp_path: Path) -> None:
    album = Album(tmp_path)
    for color in (1, 200):
        add(album, color, part="validation", step=5)
    (drawn,) = album.drawn()
    assert album.image(drawn)[0, 0, 0] == 200
    (tmp_path / "pictures" / "mine.png").write_bytes(b"mine")
    Run.begin(tmp_path, {}, resume=True)
    assert album.drawn() == [drawn]
    Run.begin(tmp_path, {}, resume=False)
    assert not (tmp_path / "pictures.jsonl").exists()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["mine.png"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "2 seconds"), (40, "40 seconds"), (170, "3 minutes"), (9000, "2.5 hours")]
)
def test_times_are_in_units_that_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("changes", [{"step": "a"}, {"seed": 1.5}, {"prompt": 3}, {"part": "../../taught"}])
def test_a_listing_with_values_of_other_types_has_no_pictures(tmp_path: Path, changes: dict[str, object]) -> None:
    write_run(tmp_path, steps=10)
    add(Album(tmp_path), 9, part="taught", step=0)
    listing = tmp_path / "pictures.jsonl"
    listing.write_text(json.dumps({**json.loads(listing.read_text()), **changes}))
    assert Album(tmp_path).drawn() == []
    assert "Running: step 10" in html(tmp_path)


@pytest.mark.parametrize(
    ("config", "log"),
    [
        ({"learning_rate": "x"}, {}),
        ({"method": "x"}, {}),
        ({"dtype": 3}, {}),
        ({"regularization": [3]}, {}),
        ({"batch": None}, {}),
        ({}, {"pictures_per_second": None}),
        ({}, {"index": "1"}),
        ({}, {"target_loss": None}),
    ],
)
def test_records_of_other_types_are_named_in_one_sentence(
    tmp_path: Path, config: dict[str, object], log: dict[str, object]
) -> None:
    write_run(tmp_path, steps=10, **log)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    with pytest.raises(OptionError, match="holds no records of a run that can be read .*Check it"):
        html(tmp_path)


def test_only_png_files_of_a_size_that_can_be_drawn_are_pictures_of_a_run(tmp_path: Path) -> None:
    album = Album(tmp_path)
    add(album, 9, part="taught", step=0)
    (drawn,) = album.drawn()
    file = tmp_path / "pictures" / drawn.file
    Image.new("RGB", (16, 16)).save(file, format="GIF")
    with pytest.raises(OptionError, match="cannot be read"):
        album.image(drawn)
    Image.new("1", (20_000, 20_000)).save(file, format="PNG")
    with pytest.raises(OptionError, match="cannot be read"):
        album.image(drawn)


def test_pictures_that_were_removed_or_damaged_end_neither_page_nor_training(tmp_path: Path) -> None:
    write_run(tmp_path, steps=10)
    album = Album(tmp_path)
    for seed in range(3):
        add(album, 9, part="validation", step=5, seed=seed)
    first, second, _ = album.drawn()
    (tmp_path / "pictures" / first.file).unlink()
    assert [drawn.seed for drawn in album.drawn()] == [1, 2]
    assert "seed 1" in html(tmp_path)
    assert "seed 0" not in html(tmp_path)
    (tmp_path / "pictures" / second.file).write_bytes(b"\x89PNG")
    with pytest.raises(OptionError, match=f"{second.file} cannot be read .* Remove it"):
        html(tmp_path)
    (tmp_path / "pictures.jsonl").write_text("{")
    assert album.drawn() == []
    assert "Running: step 10" in html(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"part": "../../photos/a"}, {"step": "5"}, {"seed": None}, {"place": 0.5}, {"prompt": 3}, {"more": 1}]
)
def test_a_listing_that_names_no_pictures_of_a_run_is_not_read(wrong: dict[str, object], tmp_path: Path) -> None:
    album = Album(tmp_path)
    add(album, 1, part="validation", step=5)
    listing = tmp_path / "pictures.jsonl"
    listing.write_text(json.dumps(json.loads(listing.read_text()) | wrong) + "\n")
    assert album.drawn() == []


def test_a_picture_of_another_format_than_png_is_not_decoded_whatever_its_name(tmp_path: Path) -> None:
    """Some decoders of Pillow run programs."""
    album = Album(tmp_path)
    add(album, 1, part="validation", step=5)
    (drawn,) = album.drawn()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / drawn.file, format="PPM")
    with pytest.raises(OptionError, match=r"validation-000005-0-000.png cannot be read .* Remove it"):
        album.image(drawn)
