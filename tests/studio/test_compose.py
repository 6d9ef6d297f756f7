import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nicegui import ui
from nicegui.testing import User

from making import invented
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.studio.commands import Command
from moongate.studio.composition import Composition
from moongate.studio.drafts import Draft
from moongate.studio.pictures import pictures
from moongate.studio.state import Studio
from studio.conftest import until
from studio_making import make_drawing

EMPTY_REPORT: dict[str, Any] = {
    "sentences": [],
    "shares": {},
    "conflicts": [],
    "head": [],
    "rows": [],
    "lost": None,
    "cost": "",
}
"""A report of a merge in which there is nothing to say."""


@pytest.fixture
def files(studio: Studio, tiny_folder: Path) -> list[Path]:
    base = Backbone.load(tiny_folder, device="cpu")
    subjects = [("<one>", "bear"), ("<two>", "cat")]
    return [
        invented(base, subject, seed=n).save(studio.places.concepts / f"{subject[1]}.safetensors")
        for n, subject in enumerate(subjects)
    ]


async def choose_both(user: User) -> None:
    await user.open("/compose")
    for name in ("bear", "cat"):
        await user.should_see(marker=f"add-{name}", retries=100)
        user.find(marker=f"add-{name}").click()
        await user.should_see(marker=f"strength-{name}", retries=100)


def test_chosen_concepts_are_merged_at_once_and_the_report_follows_the_strengths(
    studio: Studio, files: list[Path], visit: Callable[..., None]
) -> None:
    shares: list[list[str]] = []

    def shown(user: User) -> list[str]:
        texts = [str(getattr(each, "text", "")) for each in user.find(kind=ui.element).elements]
        return [text for text in texts if text.endswith("%")]

    async def look(user: User) -> None:
        await choose_both(user)
        await user.should_see("How much of each survives", retries=1800)
        await user.should_see("Neutral captions drift by", retries=100)
        shares.append(shown(user))
        (slider,) = user.find(marker="strength-cat").elements
        slider.value = 0.3
        await until(lambda: shown(user) != shares[0])
        await user.should_see("cat.safetensors:0.3", retries=100)

    visit(look)
    assert Composition.read(studio.places).concepts[1].strength == 0.3


def test_a_report_that_comes_late_does_not_replace_that_of_the_strengths_that_are_set(
    studio: Studio, files: list[Path], visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, goes_on, answered = asyncio.Event(), asyncio.Event(), list[float]()

    async def ask(_kind: str, *, concepts: list[tuple[str, float]], **_arguments: Any) -> dict[str, Any]:
        ((_, strength),) = concepts
        if strength != 1:
            began.set()
            await goes_on.wait()
        answered.append(strength)
        return {**EMPTY_REPORT, "sentences": [(f"Merged at {strength:g}.", "good")]}

    monkeypatch.setattr(studio.desk, "ask", ask)

    async def look(user: User) -> None:
        await user.open("/compose")
        await user.should_see(marker="add-bear", retries=100)
        user.find(marker="add-bear").click()
        await user.should_see("Merged at 1.", retries=100)
        (slider,) = user.find(marker="strength-bear").elements
        slider.value = 0.95
        await began.wait()
        slider.value = 1.0
        goes_on.set()
        await until(lambda: answered == [1, 0.95])
        await asyncio.sleep(0.3)
        assert len(user.find("Merged at").elements) == 1
        await user.should_see("Merged at 1.")

    visit(look)


def test_a_concept_is_dropped_into_the_field_and_taken_out_of_it(
    studio: Studio, files: list[Path], visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_nothing(studio, monkeypatch)

    async def look(user: User) -> None:
        await user.open("/compose")
        await user.should_see(marker="add-bear", retries=100)
        (chip,) = {each.parent_slot.parent for each in user.find(marker="add-bear").elements if each.parent_slot}
        send(chip, "dragstart")
        send(*user.find(marker="field").elements, "drop")
        await user.should_see(marker="remove-bear", retries=100)
        user.find(marker="remove-bear").click()
        await user.should_see("No concept is chosen.", retries=100)

    visit(look)
    assert Composition.read(studio.places).concepts == ()


def test_two_browsers_choose_together(
    studio: Studio, files: list[Path], visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_nothing(studio, monkeypatch)

    async def look(user: User) -> None:
        await user.open("/compose")
        Composition.read(studio.places).added(files[1]).write(studio.places)  # as another browser's page does
        await user.should_see(marker="remove-cat", retries=100)

    visit(look)


@pytest.mark.slow
def test_a_merge_is_saved_and_drawn_by_commands_that_run_on_their_own(
    studio: Studio, files: list[Path], visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_nothing(studio, monkeypatch)

    async def look(user: User) -> None:
        await choose_both(user)
        user.find(marker="merge-name").clear().type("both of them")
        await user.should_see("--out " + str(studio.places.concepts / "both-of-them.safetensors"), retries=100)
        user.find(marker="save-merge").click()
        for marker, value in (("count", 2), ("steps", 2), ("seed", 5)):
            (field,) = user.find(marker=marker).elements
            field.value = value
        user.find(marker="prompt").clear().type("a {0} and a {1}")
        await user.should_see("Draws: a <one> bear and a <two> cat", retries=100)
        user.find(marker="draw").click()
        await user.should_see("merge: merged in closed form", retries=100)
        await until((studio.places.concepts / "both-of-them.safetensors").exists, seconds=300)
        await until(lambda: len(pictures(studio.places)) == 2, seconds=300)
        await user.should_see("seed 5", retries=100)
        await user.should_see("seed 6", retries=100)

    visit(look)
    merged = Concept.load(studio.places.concepts / "both-of-them.safetensors")
    assert [subject.words for subject in merged.subjects] == ["<one> bear", "<two> cat"]
    assert {picture.prompt for picture in pictures(studio.places)} == {"a <one> bear and a <two> cat"}


def test_joint_teaching_is_a_job_of_the_fleet(
    studio: Studio, files: list[Path], visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_nothing(studio, monkeypatch)
    for name, token in (("bear", "<one>"), ("cat", "<two>")):
        draft = Draft.create(studio.places.photos, name)
        make_drawing(draft.teach / "0.png", "x")
        draft.choose(category=name, token=token)

    async def look(user: User) -> None:
        await choose_both(user)
        user.find(marker="way-joint").click()
        await user.should_see(marker="teach-jointly", retries=100)
        user.find(marker="draw").click()
        await until(lambda: any("not taught yet" in message for message in user.notify.messages))
        user.find(marker="teach-jointly").click()
        await until(lambda: "joint-bear-cat" in studio.trainings.queue.states())

    visit(look)


def test_regions_are_typed_and_drawn(
    studio: Studio, files: list[Path], visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_nothing(studio, monkeypatch)

    async def look(user: User) -> None:
        await choose_both(user)
        user.find(marker="columns").click()
        await user.should_see("'--region=<two> cat=0.5,0,1,1'", retries=100)
        (field,) = user.find(marker="left-1").elements
        field.value = 25
        send(field, "change")
        await user.should_see("'--region=<two> cat=0.25,0,1,1'", retries=100)
        (canvas,) = user.find(marker="canvas").elements
        for kind, x, y in (("mousedown", 32, 64), ("mousemove", 100, 100), ("mouseup", 160, 320)):
            send(canvas, "mouse", {"mouse_event_type": kind, "image_x": x, "image_y": y})
        await user.should_see("'--region=<one> bear=0.1,0.2,0.5,1'", retries=100)
        user.find(marker="no-regions").click()
        await user.should_not_see("--region", retries=100)

    visit(look)
    assert Composition.read(studio.places).regions == {}


def test_drawings_that_wait_for_one_another_take_a_folder_each(
    studio: Studio, files: list[Path], visit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_nothing(studio, monkeypatch)
    started: list[Command] = []
    monkeypatch.setattr(studio.commands, "start", lambda command, **_: started.append(command))

    async def look(user: User) -> None:
        await choose_both(user)
        for number in (1, 2):
            user.find(marker="draw").click()
            await until(lambda number=number: len(started) == number)

    visit(look)
    assert len({command.words[-1] for command in started}) == 2


def answer_nothing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the desk give an empty report at once, for what does not depend on it."""

    async def ask(_kind: str, **_arguments: Any) -> dict[str, Any]:
        return EMPTY_REPORT

    monkeypatch.setattr(studio.desk, "ask", ask)


def send(element: Any, kind: str, arguments: object = None) -> None:
    """Let an element hear an event, as it comes from a browser."""
    from nicegui import events
    from nicegui.events import handle_event

    for listener in list(element._event_listeners.values()):
        if listener.type.split(".")[0] == kind:
            given = events.GenericEventArguments(sender=element, client=element.client, args=arguments)
            with element.parent_slot or element:
                handle_event(listener.handler, given)
