"""Gallery and Judge by the keyboard alone, and dropped files, in headless Chromium: slow, skipped without it."""

import shutil
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from moongate import interop
from moongate.concept import Concept
from moongate.pocket import example
from moongate.preference import Study, read_answers
from moongate.preference.making import make_study
from moongate.studio.drafts import Draft
from moongate.studio.pictures import Picture, pictures
from moongate.studio.places import Places
from studio.browser import Page, Server, wait_for
from studio_making import make_drawing
from studying import make_pictures

pytestmark = pytest.mark.slow


@pytest.fixture
def drawn(server: Server) -> Picture:
    """A picture in the gallery that says it was drawn in two steps with the demo's penguin."""
    places = Places.open(server.folder)
    penguin = Concept.load(places.concepts / "penguin.safetensors")
    prompt = f"photo of a {penguin.subjects[0].words} in zebra-land"
    file = make_drawing(
        places.gallery / "zebra" / "0.png", prompt, seed=31, concept=penguin, model="pocket", side_px=64
    )
    return next(each for each in pictures(places) if each.file == file)


def made(server: Server, folder: str) -> list[Picture]:
    """Return the pictures of the folders in the gallery whose names begin so."""
    places = Places.open(server.folder)
    return [each for each in pictures(places) if each.file.parent.name.startswith(folder)]


def test_a_picture_is_drawn_again_and_edited_by_the_keyboard_alone(page: Page, server: Server, drawn: Picture) -> None:
    page.size(1400)
    page.open(server.address + "/gallery")
    page.sees("seed 31")
    page.tab_to("Filter by words of the prompt, seed, concept or hash")
    page.press("zebra")
    page.sees("1 pictures")
    page.tab_to(f"Look at {drawn.prompt}, seed 31")
    page.press(Keys.ENTER)
    page.sees("Draw it again")
    page.tab_to("Draw again")
    page.press(Keys.ENTER)
    (again,) = wait_for(lambda: made(server, "again-"), what="the picture drawn again")
    assert (again.prompt, again.seed, again.steps) == (drawn.prompt, 31, 2)
    assert again.concepts[0].hash == drawn.concepts[0].hash
    page.tab_to("Changed prompt")
    page.press(Keys.END, *[Keys.BACKSPACE] * len("zebra-land"), "the snow")
    page.tab_to("Edit")
    page.press(Keys.ENTER)
    edits = wait_for(lambda: [each for each in made(server, "edit-") if each.source], what="the edit")
    assert edits[0].prompt == drawn.prompt.replace("zebra-land", "the snow")
    page.press(Keys.ESCAPE)
    page.sees("2 pictures")  # the edit is of another prompt
    page.tab_to("Filter by words of the prompt, seed, concept or hash")
    page.press(Keys.END, *[Keys.BACKSPACE] * len("zebra"), "snow")
    page.sees("in the snow")
    wait_for(lambda: any("/edit-" in address for address in page.pictures()), what="the edit on the page")
    page.tab_to(f"Compare {edits[0].prompt}, seed 31")
    page.press(Keys.SPACE)
    assert page.problems() == []


def test_a_study_is_judged_by_the_keyboard_alone(page: Page, server: Server, tmp_path: Path) -> None:
    methods = {name: make_pictures(tmp_path / name, ["a", "b", "c"], seed=n * 1000) for n, name in enumerate("xy")}
    folder = server.folder / "studies" / "keys"
    make_study(folder, methods)
    page.open(server.address + "/judge")
    page.sees("keys")
    page.tab_to("keys")
    page.press(Keys.ENTER)
    page.tab_to("Your name")
    page.press("berta")
    page.tab_to("Begin")
    page.press(Keys.ENTER)
    page.sees("0 of 3 answered")
    page.press("1")
    page.sees("1 of 3 answered")
    page.tab_to("2: right")
    page.press(Keys.ENTER)
    page.sees("2 of 3 answered")
    page.press("b", "s", "2")  # back, and another answer to the second question
    page.sees("All questions are answered")
    assert [one.choice for one in read_answers(folder, Study.open(folder))] == ["left", "skip", "right"]
    assert page.problems() == []


def two_of_one_name(folder: Path, *files: Path) -> str:
    """Copy files into folders of their own under one name, and return their paths as a browser takes them."""
    for number, file in enumerate(files):
        (folder / str(number)).mkdir(parents=True)
        shutil.copyfile(file, folder / str(number) / f"bear{file.suffix}")
    return "\n".join(str(folder / str(number) / f"bear{file.suffix}") for number, file in enumerate(files))


def test_two_dropped_files_of_one_name_both_arrive(page: Page, server: Server, tmp_path: Path) -> None:
    places = Places.open(server.folder)
    penguin = Concept.load(places.concepts / "penguin.safetensors")
    written = interop.write(penguin, tmp_path / "kohya", to="kohya").files
    page.open(server.address + "/library")
    page.give(two_of_one_name(tmp_path / "weights", *written))
    page.sees("bear was imported")
    both = Concept.load(places.concepts / "bear.safetensors")
    assert (len(both.tokens), len(both.deltas)) == (1, len(penguin.deltas))
    draft = Draft.create(places.photos, "dropped")
    page.open(server.address + "/?draft=dropped")
    photos = sorted(example("drawn-owl").training.glob("*.webp"))[:2]
    page.give(two_of_one_name(tmp_path / "photos", *photos))
    wait_for(lambda: len(draft.photos()) == 2, what="both photos")
    assert {photo.file.read_bytes() for photo in draft.photos()} == {file.read_bytes() for file in photos}
    assert page.problems() == []
