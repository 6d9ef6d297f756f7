from collections.abc import Callable
from dataclasses import replace

import pytest
from nicegui.testing import User

from moongate.concept import Concept
from moongate.studio.commands import Command, Commands, Started, State
from moongate.studio.state import Studio
from studio.conftest import until
from studio_making import make_concept, make_drawing


@pytest.fixture
def bear(studio: Studio) -> Concept:
    concept = make_concept(studio.places.concepts / "renamed-since.safetensors")
    for seed in (1, 2):
        name = f"snow-{seed}"
        make_drawing(
            studio.places.gallery / "a" / f"{name}.png", "a <bear> bear <i>in</i> snow", seed=seed, concept=concept
        )
    make_drawing(studio.places.gallery / "b" / "house.png", "a house", seed=3)
    return concept


@pytest.fixture
def started(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """Collect the commands that pages start, and start none."""
    found: list[Command] = []
    monkeypatch.setattr(studio.commands, "start", lambda command, **_: found.append(command))
    return found


def test_pictures_are_filtered_by_what_their_files_say(
    bear: Concept, studio: Studio, visit: Callable[..., None]
) -> None:
    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see("a <bear> bear <i>in</i> snow, seed 1", retries=100)
        await user.should_see("a house, seed 3", retries=100)
        user.find(marker="filter").type(f"SNOW {bear.hash} 2")
        await user.should_see("1 pictures", retries=100)
        await user.should_not_see("a house, seed 3", retries=100)
        await user.should_see("seed 2", retries=100)

    visit(look)


def test_drawings_are_started_to_take_turns_and_one_that_waits_is_shown(
    bear: Concept, studio: Studio, monkeypatch: pytest.MonkeyPatch, visit: Callable[..., None]
) -> None:
    known = Commands(folder=studio.places.commands)
    given = list[bool]()
    waiting = Started(
        name="draw-x", command=Command(("generate",)), began=1, state="waiting", status=None, log=known.folder / "x"
    )
    monkeypatch.setattr(studio.commands, "all", lambda: [waiting])
    monkeypatch.setattr(studio.commands, "start", lambda _command, *, name, takes_turns: given.append(takes_turns))

    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see("draw-x waits until the drawings before it are done.", retries=100)
        await user.should_see(marker="look-snow-2", retries=100)
        user.find(marker="look-snow-2").click()
        await user.should_see("moongate generate", retries=100)
        user.find(marker="redraw").click()

    visit(look)
    assert given == [True]


def test_a_drawing_that_runs_is_shown_however_many_wait_and_a_failure_until_others_follow(
    bear: Concept, studio: Studio, monkeypatch: pytest.MonkeyPatch, visit: Callable[..., None]
) -> None:
    def started(number: int, state: State) -> Started:
        log = studio.places.commands / "x"
        return Started(
            name=f"draw-{number}", command=Command(("generate",)), began=number, state=state, status=None, log=log
        )

    others = [replace(started(9, "running"), name=f"measure-{number}") for number in range(5)]
    drawings = [
        *(started(number, "waiting") for number in range(7, 2, -1)),
        started(2, "running"),
        started(1, "failed"),
    ]
    known = [*others, *drawings]
    monkeypatch.setattr(studio.commands, "all", lambda: known)

    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see("draw-2 is running.", retries=100)
        for number in range(3, 8):
            await user.should_see(f"draw-{number} waits until")
        await user.should_not_see("draw-1 failed")
        known[:] = drawings[3:]
        await user.should_see("draw-1 failed: it printed nothing.", retries=100)

    visit(look)


def test_two_pictures_are_compared(bear: Concept, studio: Studio, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see(marker="compare-snow-1", retries=100)
        for name in ("snow-1", "house"):
            user.find(marker=f"compare-{name}").click()
        await user.should_see("Compared", retries=100)
        await user.should_see("no concept", retries=100)
        await user.should_see(f"({bear.hash})", retries=100)

    visit(look)


def test_a_picture_is_drawn_again_with_the_concept_of_its_hash(
    bear: Concept, studio: Studio, started: list[Command], visit: Callable[..., None]
) -> None:
    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see(marker="look-snow-2", retries=100)
        user.find(marker="look-snow-2").click()
        await user.should_see("moongate generate", retries=100)
        user.find(marker="redraw").click()
        user.find(marker="redraw").click()

    visit(look)
    command, again = started
    assert command.words[-1] != again.words[-1], "each draws into a folder of its own, also while the first one waits"
    assert f"--concept {studio.places.concepts / 'renamed-since.safetensors'}" in command.line
    assert "--seed 2" in command.line
    assert str(studio.places.gallery / "again-") in command.line


def test_a_picture_is_edited_by_its_words(
    bear: Concept, studio: Studio, started: list[Command], visit: Callable[..., None]
) -> None:
    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see(marker="look-snow-1", retries=100)
        user.find(marker="look-snow-1").click()
        user.find(marker="edit").click()
        await until(lambda: any("Change a word of it" in message for message in user.notify.messages))
        user.find(marker="target").clear().type("a <bear> bear on a beach")
        await user.should_see("'a <bear> bear on a beach' --seed 1", retries=100)
        user.find(marker="edit").click()

    visit(look)
    assert started[0].words[:3] == ("edit", "a <bear> bear <i>in</i> snow", "a <bear> bear on a beach")


def test_what_is_typed_into_a_picture_s_dialog_stays_when_another_picture_arrives(
    bear: Concept, studio: Studio, visit: Callable[..., None]
) -> None:
    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see(marker="look-snow-1", retries=100)
        user.find(marker="look-snow-1").click()
        user.find(marker="target").clear().type("a <bear> bear on a beach")
        make_drawing(studio.places.gallery / "c" / "new.png", "a ship", seed=4)
        await user.should_see("a ship, seed 4", retries=100)
        (field,) = user.find(marker="target").elements
        assert field.value == "a <bear> bear on a beach"  # type: ignore[attr-defined]

    visit(look)


def test_a_concept_that_is_gone_is_named(bear: Concept, studio: Studio, visit: Callable[..., None]) -> None:
    (studio.places.concepts / "renamed-since.safetensors").unlink()

    async def look(user: User) -> None:
        await user.open("/gallery")
        await user.should_see(marker="look-snow-1", retries=100)
        user.find(marker="look-snow-1").click()
        await user.should_see("is not in the library anymore", retries=100)

    visit(look)


def test_a_picture_is_downloaded_with_what_it_says(bear: Concept, studio: Studio, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        file = studio.places.gallery / "a" / "snow-1.png"
        got = await user.http_client.get(studio.places.address(file))
        assert got.content == file.read_bytes()

    visit(look)
