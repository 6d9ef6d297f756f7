import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nicegui.testing import User

from moongate.run_page import Album, Drawn
from moongate.run_page.measures import Measured, write_measures
from moongate.studio.commands import Command, Started
from moongate.studio.state import Studio
from run_page.test_page import CONFIG


def write_run(folder: Path, *, steps: int, words: str = "<bear>") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "subjects": [{"category": "bear", "token": words}]}))
    lines = [
        {"index": index, "target_loss": 0.2, "prior_loss": 0.4, "pictures_per_second": 8.0}
        for index in range(1, steps + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw(folder: Path, step: int, seed: int) -> None:
    drawn = Drawn(part="validation", step=step, prompt="photo of a bear", seed=seed)
    Album(folder).add(drawn, np.full((16, 16, 3), 8 * seed, dtype=np.uint8))


def test_a_run_of_the_shell_is_watched_and_followed(studio: Studio, visit: Callable[..., None]) -> None:
    run = studio.places.root / "shell.run"
    write_run(run, steps=10)

    async def look(user: User) -> None:
        await user.open("/watch")
        await user.should_see("Teaching <bear> bear", retries=100)
        await user.should_see("Stopped after step 10 of 30")
        for step in (0, 10):
            draw(run, step, 0)
        await user.should_see("The base model: photo of a bear", retries=100)
        await user.should_see("Step 10: photo of a bear")
        write_run(run, steps=30)
        await user.should_see("Finished after 30 steps", retries=100)

    visit(look)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{}", "does not say what is taught"),
        ("config.json", '{"subjects": 3}', "does not say what is taught"),
        ("log.jsonl", "3\n3\n", "holds no records of a run that can be read"),
        ("log.jsonl", '{"index": 1, "target_loss": "low"}\n' * 2, "target_loss in line 1"),
    ],
)
def test_a_run_whose_records_are_damaged_says_so_on_the_page(
    file: str, content: str, said: str, studio: Studio, visit: Callable[..., None]
) -> None:
    write_run(studio.places.root / "shell.run", steps=10)
    (studio.places.root / "shell.run" / file).write_text(content)

    async def look(user: User) -> None:
        await user.open("/watch")
        await user.should_see(said, retries=100)

    visit(look)


def test_the_step_to_stop_at_is_shown_once_it_is_measured(studio: Studio, visit: Callable[..., None]) -> None:
    run = studio.places.concepts / "bear.run"
    write_run(run, steps=30)

    async def look(user: User) -> None:
        await user.open("/watch")
        await user.should_see("Not measured yet", retries=100)
        values = ((0, 0.2, 0.0), (10, 0.6, 0.1), (20, 0.6, 0.2), (30, 0.6, 0.3))
        write_measures(
            run, [Measured(step=s, alignment=a, drift=d, network="pocket-clip", photos="0") for s, a, d in values]
        )
        await user.should_see("Image alignment stops rising at step 10", retries=100)

    visit(look)


def test_a_folder_of_photos_outside_is_not_read(studio: Studio, tmp_path: Path, visit: Callable[..., None]) -> None:
    write_run(studio.places.concepts / "bear.run", steps=3)

    async def look(user: User) -> None:
        await user.open("/watch")
        user.find(marker="held-out").type(str(tmp_path))
        await user.should_see(f"--photos {tmp_path} --follow", retries=100)
        user.find(marker="measure").click()
        await user.should_see("is not in", retries=100)
        assert studio.commands.all() == []

    visit(look)


def test_the_measuring_of_a_run_is_shown_and_not_that_of_another_whose_name_begins_alike(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, visit: Callable[..., None]
) -> None:
    started = []
    for number, (name, state) in enumerate((("bear", "finished"), ("bear2", "failed"), ("bear-blue", "failed"))):
        run = studio.places.concepts / f"{name}.run"
        write_run(run, steps=3)
        command = Command(("measure", str(run), "--photos", "x", "--follow"))
        common = {"began": number, "status": None, "log": studio.places.commands / "x"}
        started.append(Started(name=f"measure-{name}", command=command, state=state, **common))
    monkeypatch.setattr(studio.commands, "all", lambda: started[::-1])

    async def look(user: User) -> None:
        await user.open(f"/watch?run={studio.places.concepts / 'bear.run'}")
        await user.should_see("--follow: finished.", retries=100)
        await user.should_not_see("--follow: failed.")

    visit(look)


def test_records_that_cannot_be_read_are_one_sentence(studio: Studio, visit: Callable[..., None]) -> None:
    run = studio.places.concepts / "bear.run"
    write_run(run, steps=3)
    (run / "config.json").write_text("[]")

    async def look(user: User) -> None:
        await user.open("/watch")
        await user.should_see("holds no records of a run that can be read", retries=100)

    visit(look)
