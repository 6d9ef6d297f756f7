"""Teach, Watch and Library by the keyboard alone, in headless Chromium: slow, skipped without it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from moongate.concept import Concept
from studio.browser import Page, Server, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def at_work(page: Page, server: Server) -> Iterator[Page]:
    """A wide window, in which the browser has reported no error by the end."""
    page.size(1400)
    yield page
    assert page.problems() == []


def enter(page: Page, name: str) -> None:
    page.tab_to(name)
    page.press(Keys.ENTER)


def test_a_training_is_started_paused_resumed_and_watched_by_the_keyboard_alone(at_work: Page, server: Server) -> None:
    at_work.open(server.address)
    at_work.sees("What do you teach?")
    at_work.tab_to("An example of pocket")
    at_work.press(*"drawn-owl", Keys.ENTER)
    enter(at_work, "Use the example")
    wait_for(lambda: "draft=drawn-owl" in at_work.driver.current_url)
    at_work.tab_to("Caption of 00.webp")
    at_work.press(Keys.END, " with eyes", Keys.TAB)
    at_work.sees("with eyes")
    at_work.tab_to("Only to judge: 00.webp")
    at_work.press(Keys.SPACE)
    at_work.tab_to("Steps")
    at_work.press(Keys.END, *[Keys.BACKSPACE] * 4, "12", Keys.TAB)
    at_work.sees("--steps 12")
    enter(at_work, "Start the training")
    at_work.sees("drawn-owl is running")
    at_work.sees("Step 1 of 12")
    enter(at_work, "Pause drawn-owl")
    at_work.sees("drawn-owl is paused")
    enter(at_work, "Resume drawn-owl")
    at_work.sees("drawn-owl is done")
    enter(at_work, "Watch drawn-owl")
    at_work.sees("Teaching <owl1> owl")
    at_work.tab_to("Folder of held-out photos")
    concept = Concept.load(server.folder / "concepts" / "drawn-owl.safetensors")
    assert concept.record["steps"] == 12


def test_the_focus_stays_on_a_button_whose_part_is_built_anew(at_work: Page, server: Server) -> None:
    at_work.open(server.address + "/library")
    at_work.tab_to("Delete house")
    (server.folder / "concepts" / "cottage.safetensors").write_bytes(
        (server.folder / "concepts" / "house.safetensors").read_bytes()
    )
    at_work.sees("cottage, pocket")
    assert at_work.focused() == "Delete house"


def test_a_concept_is_renamed_exported_deleted_and_restored_by_the_keyboard_alone(
    at_work: Page, server: Server
) -> None:
    at_work.open(server.address + "/library")
    concepts = server.folder / "concepts"
    enter(at_work, "Rename snowman")
    at_work.tab_to("New name")
    at_work.press(Keys.END, *[Keys.BACKSPACE] * len("snowman"), "frosty", Keys.ENTER)
    wait_for((concepts / "frosty.safetensors").exists, what="the new name")
    enter(at_work, "Export frosty")
    at_work.sees("--to kohya")
    enter(at_work, "Write the files")
    at_work.sees("Download frosty")
    enter(at_work, "Close")
    at_work.tab_to("Search")
    at_work.press("frosty")
    wait_for(lambda: "penguin" not in at_work.text(), what="the other cards gone")
    enter(at_work, "Delete frosty")
    at_work.sees("No concept has all of these words.")
    enter(at_work, "Restore frosty")
    wait_for((concepts / "frosty.safetensors").exists, what="the concept back")
    assert not (concepts / "snowman.safetensors").exists()


def test_a_file_is_chosen_by_the_button_of_the_drop_zone(at_work: Page, server: Server, tmp_path: Path) -> None:
    at_work.open(server.address + "/library")
    at_work.tab_to("Choose files")
    copied = tmp_path / "other.safetensors"
    copied.write_bytes((server.folder / "concepts" / "penguin.safetensors").read_bytes())
    at_work.give(str(copied))
    at_work.sees("other was imported")
