import json
from collections.abc import Callable
from pathlib import Path

import pytest
from nicegui import ui
from nicegui.testing import User

from moongate.preference import QUESTIONS, Study, picture_key, read_answers, write_page
from moongate.preference.making import Subject, make_study
from moongate.studio.state import Studio
from studio.conftest import until
from studio_making import make_drawing
from studying import make_picture, make_pictures


@pytest.fixture
def folder(studio: Studio, tmp_path: Path) -> Path:
    prompts = ["a bear in the <u>snow</u>", "a bear"]
    methods = {
        name: make_pictures(tmp_path / name, prompts, seed=n * 1000) for n, name in enumerate(("ours", "theirs"))
    }
    make_picture(tmp_path / "photos" / "0.png", seed=5)
    folder = studio.places.studies / "bears"
    write_page(make_study(folder, methods, [Subject(words="<bear> bear", photos=tmp_path / "photos")]), folder)
    return folder


def press(user: User, name: str) -> None:
    """Press a key, as the browser's part of `ui.keyboard` reports it."""
    from studio.test_compose import send

    (keyboard,) = user.find(kind=ui.keyboard).elements
    modifiers = {"altKey": False, "ctrlKey": False, "shiftKey": False, "metaKey": False}
    event = {"action": "keydown", "repeat": False, "key": name, "code": name, "location": 0, **modifiers}
    send(keyboard, "key", event)


def test_a_rater_answers_with_keys_and_goes_on_later(studio: Studio, folder: Path, visit: Callable[..., None]) -> None:
    study = Study.open(folder)

    async def look(user: User) -> None:
        await user.open("/judge?study=bears")
        user.find(marker="rater").type("anna")
        user.find(marker="begin").click()
        await user.should_see(QUESTIONS["text"], retries=100)
        press(user, "1")
        await until(lambda: len(read_answers(folder, study)) == 1)
        press(user, "x")
        press(user, "s")
        await user.should_see(QUESTIONS["image"], retries=100)
        await user.open("/judge?study=bears")
        user.find(marker="rater").type(" anna ")
        user.find(marker="begin").click()
        await user.should_see("2 of 4 answered", retries=100)
        press(user, "2")
        press(user, "b")
        press(user, "1")
        press(user, "2")
        await user.should_see("All questions are answered", retries=100)
        await user.should_see("Raters: anna.", retries=100)
        await user.should_see("100.0%", retries=100)

    visit(look)
    trials = study.trials("anna")
    given = {one.trial.key: one.choice for one in read_answers(folder, study)}
    assert [given[trial.key] for trial in trials] == ["left", "skip", "left", "right"]


def test_buttons_answer_too_and_the_methods_are_not_told(
    studio: Studio, folder: Path, visit: Callable[..., None]
) -> None:
    study = Study.open(folder)

    async def look(user: User) -> None:
        await user.open("/judge?study=bears")
        user.find(marker="rater").type("ben")
        user.find(marker="begin").click()
        await user.should_see("a bear", retries=100)
        shown = [str(each._props.get("src", "")) for each in user.find(kind=ui.element).elements if each.tag == "img"]
        assert len(shown) == 2
        assert not [source for source in shown if "ours" in source or "theirs" in source]
        user.find(marker="right").click()
        await user.should_see("1 of 4 answered", retries=100)

    visit(look)
    assert [one.choice for one in read_answers(folder, study)] == ["right"]


def test_a_name_that_is_empty_is_refused(studio: Studio, folder: Path, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        await user.open("/judge?study=bears")
        user.find(marker="begin").click()
        await until(lambda: any("The rater's name" in message for message in user.notify.messages))
        await user.open("/judge?study=../../..")
        await until(lambda: any("is not in" in message for message in user.notify.messages))

    visit(look)


def test_the_page_for_raters_is_downloaded_and_answers_come_back(
    studio: Studio, folder: Path, visit: Callable[..., None]
) -> None:
    study = Study.open(folder)
    keys = {side: picture_key(study, 0, method) for side, method in (("left", "ours"), ("right", "theirs"))}
    one = {"question": "text", **keys, "choice": "left", "time": "2026-01-31T12:00:00Z"}
    facts = {"format": "moongate-answers", "version": 1, "study": study.id, "rater": "eva", "answers": [one]}

    async def look(user: User) -> None:
        await user.open("/judge?study=bears")
        page = await user.http_client.get(studio.places.address(folder / "judge.html"))
        assert page.headers["content-disposition"].startswith("attachment")
        assert study.id in page.text
        (field,) = user.find(marker="answers").elements
        for content in (json.dumps(facts), json.dumps({**facts, "study": "x"}), "<script>"):
            await user.http_client.post(field._props["url"], files={"file": ("eva.json", content, "application/json")})
        await until(lambda: len(user.notify.messages) == 3)
        assert user.notify.messages[0] == "1 new of 1 answers."
        assert all("cannot be added" in message for message in user.notify.messages[1:])
        await user.should_see("Raters: eva.", retries=100)

    visit(look)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_study_is_made_of_folders_of_the_gallery(studio: Studio, visit: Callable[..., None]) -> None:
    for n, way in enumerate(("merge", "add")):
        make_drawing(studio.places.gallery / "bears" / way / "0.png", "a bear", seed=0, steps=n)

    async def look(user: User) -> None:
        await user.open("/judge")
        user.find(marker="make").click()
        await until(lambda: any("Fewer than two methods" in message for message in user.notify.messages))
        (methods,) = user.find(marker="methods").elements
        methods.value = ["bears/merge", "bears/add"]
        user.find(marker="study-name").clear().type("merge or add")
        await user.should_see("moongate judge make", retries=100)
        user.find(marker="make").click()
        await until((studio.places.studies / "merge-or-add" / "judge.html").exists, seconds=300)
        await user.should_see("merge-or-add", retries=100)

    visit(look)
