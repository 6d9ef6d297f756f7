import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nicegui import ui
from nicegui.testing import User
from PIL import Image

from moongate.data.folders import find_pictures
from moongate.errors import OptionError
from moongate.fleet import Job
from moongate.studio.drafts import Draft, Settings
from moongate.studio.state import Studio
from studio.conftest import until


def photo(color: int, *, size: tuple[int, int] = (100, 80)) -> bytes:
    rng = np.random.default_rng(color)
    coarse = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def draft(studio: Studio) -> Draft:
    made = Draft.create(studio.places.photos, "bear")
    for number in range(3):
        (made.teach / f"{number}.png").write_bytes(photo(number))
    made.write(Settings(category="bear", token="<bear>", steps=20))
    return made


def texts(user: User, kind: type[ui.element]) -> list[str]:
    return [element.text for element in user.find(kind).elements]  # type: ignore[attr-defined]


def marked(user: User, marker: str) -> Any:
    (element,) = user.find(marker=marker).elements
    return element


async def upload(user: User, name: str, content: bytes) -> None:
    (field,) = (each for each in user.find(ui.upload).elements)
    await user.http_client.post(field._props["url"], files={"file": (name, content, "image/png")})


def test_a_new_thing_takes_photos_and_refuses_what_is_none(studio: Studio, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        await user.open("/")
        user.find(marker="new-name").type("my <b>bear")
        user.find(marker="begin").click()
        await until(lambda: (studio.places.photos / "my-b-bear").exists())
        await user.open("/?draft=my-b-bear")
        await upload(user, "../../evil name.PNG", photo(1))
        made = Draft(folder=studio.places.photos / "my-b-bear")
        await until(lambda: [each.file.name for each in made.photos()] == ["evil-name.png"])
        await upload(user, "page.png", b"<html><script>alert(1)</script></html>")
        await until(lambda: any("is not a picture" in message for message in user.notify.messages))
        assert [each.file.name for each in made.photos()] == ["evil-name.png"]
        assert not [file for file in made.teach.iterdir() if file.name.startswith(".")]

    visit(look)


def test_two_photos_of_one_name_that_arrive_together_are_both_kept(
    studio: Studio, draft: Draft, visit: Callable[..., None]
) -> None:
    sent = [photo(number) for number in (7, 8, 9)]

    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await asyncio.gather(*(upload(user, "new.png", content) for content in sent))
        await until(lambda: len(draft.photos()) == 6)

    visit(look)
    kept = {each.file.name: each.file.read_bytes() for each in draft.photos() if each.file.name.startswith("new")}
    assert sorted(kept) == ["new-2.png", "new-3.png", "new.png"]
    assert sorted(kept.values()) == sorted(sent)
    assert not [file for file in draft.teach.iterdir() if file.name.startswith(".")]


def test_an_uploaded_photo_is_taught_whatever_its_name(draft: Draft) -> None:
    names = [
        "IMG_1234",
        "a.jpg_large",
        "notes.txt",
        "0-mask.png",
        "0_depth.JPG",
        "0.mask.png",
        "b.masklabel-masklabel.webp",
    ]
    for name in names:
        draft.place_for(name).write_bytes(photo(9))
    assert find_pictures(draft.teach) == [each.file for each in draft.photos()]
    assert len(draft.photos()) == 3 + len(names)


def test_photos_are_shown_as_the_model_sees_them_with_what_is_wrong(
    studio: Studio, draft: Draft, visit: Callable[..., None]
) -> None:
    (draft.teach / "same.png").write_bytes(photo(0))
    (draft.teach / "small.png").write_bytes(photo(7, size=(40, 40)))

    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await user.should_see("same.png shows the same as 0.png", retries=600)
        await user.should_see("small.png is smaller than the 64 pixels")
        await user.should_see("is blurred")
        sizes = set()
        for file in studio.places.previews.glob("*.png"):
            with Image.open(file) as image:
                sizes.add(image.size)
        assert sizes == {(64, 64), (100, 80), (40, 40)}, "the crop of each, and each as it is for drawing a mask"

    visit(look)


def test_a_photo_that_was_replaced_on_the_disk_is_shown_anew(
    studio: Studio, draft: Draft, visit: Callable[..., None]
) -> None:
    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await until(lambda: len(list(studio.places.previews.glob("*.png"))) == 6)
        (draft.teach / "0.png").write_bytes(photo(0, size=(40, 40)))
        await user.should_see("0.png is smaller than the 64 pixels", retries=100)

    visit(look)


def test_a_caption_is_kept_and_read_with_the_words_of_the_thing(draft: Draft, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await user.should_see("Reads: photo of a <bear> bear", retries=100)
        user.find(marker="caption-0.png").clear().type("drawing of a {}  in the snow").trigger("blur")
        await user.should_see("Reads: drawing of a <bear> bear in the snow", retries=100)
        assert (draft.teach / "0.txt").read_text() == "drawing of a {} in the snow\n"
        user.find(marker="caption-1.png").clear().type("a cat").trigger("blur")
        await user.should_see("It lacks {}", retries=100)

    visit(look)


def test_a_token_is_checked_while_it_is_typed(draft: Draft, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await user.should_see("The token <bear> can be used.", retries=900)
        user.find(marker="token").clear().type("bear")
        await user.should_see("'bear' is already a word of the tokenizer", retries=600)

    visit(look)


def test_a_photo_that_judges_is_not_taught_and_a_removed_one_is_in_the_trash(
    studio: Studio, draft: Draft, visit: Callable[..., None]
) -> None:
    async def look(user: User) -> None:
        draft.caption(draft.teach / "0.png", "a {} in a garden")
        await user.open("/?draft=bear")
        await user.should_see(marker="judge-0.png", retries=100)
        user.find(marker="judge-0.png").click()
        await until(lambda: (draft.held_out / "0.png").exists())
        assert (draft.held_out / "0.txt").exists()
        user.find(marker="remove-1.png").click()
        await until(lambda: (studio.places.trash / "bear-1.png").exists())
        job = draft.job("bear", model="pocket")
        assert (job["holdout"], job["concepts"][0]["pictures"]) == (str(draft.held_out), str(draft.teach))
        assert [each.file.name for each in draft.photos()] == ["2.png", "0.png"]

    visit(look)


def test_a_photo_that_judges_replaces_none_of_its_name(draft: Draft) -> None:
    for place, content in ((draft.teach, b"taught"), (draft.held_out, b"judging")):
        place.mkdir(exist_ok=True)
        (place / "same.png").write_bytes(content)
        (place / "same.txt").write_bytes(content)
        (place / "same.mask.png").write_bytes(content)
    draft.hold_out(draft.teach / "same.png", is_held_out=True)
    for name, content in (("same", b"judging"), ("same-2", b"taught")):
        for ending in (".png", ".txt", ".mask.png"):
            assert (draft.held_out / f"{name}{ending}").read_bytes() == content
    draft.hold_out(draft.held_out / "same.png", is_held_out=True)
    assert (draft.held_out / "same.png").exists(), "it is there already"


def test_the_page_says_what_it_would_run_and_queues_it_once(
    studio: Studio, draft: Draft, visit: Callable[..., None]
) -> None:
    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await user.should_see("moongate train", retries=100)
        await user.should_see("--category bear --token '<bear>'")
        user.find(marker="start").click()
        await until(lambda: studio.trainings.queue.state("bear") == "queued")
        await user.should_see("bear waits", retries=100)
        await user.should_see("'bear' is in the queue already", retries=100)
        await user.open("/")  # another browser sees the same
        await user.should_see("bear waits", retries=100)
        user.find(marker="pause-bear").click()
        await user.should_see("bear is paused", retries=100)
        user.find(marker="resume-bear").click()
        await user.should_see("bear waits", retries=100)
        user.find(marker="cancel-bear").click()
        await until(lambda: studio.trainings.queue.state("bear") is None)

    visit(look)


def test_what_a_training_takes_is_estimated_before_it_starts(draft: Draft, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await user.should_see("It takes about", retries=900)
        await user.should_see("pictures a second (measured just now by a few steps)")

    visit(look)


def test_texts_of_users_and_files_never_become_markup(studio: Studio, draft: Draft, visit: Callable[..., None]) -> None:
    evil = "<img src=x onerror=alert(1)>"
    studio.trainings.queue.add(Job(name="evil", settings={"job": {"name": "evil"}}))
    studio.trainings.queue.move("evil", "queued", "running")
    studio.trainings.queue.fail("evil", evil)
    draft.caption(draft.teach / "0.png", evil)
    draft.choose(category=evil)

    async def look(user: User) -> None:
        answer = await user.http_client.get("/?draft=bear")
        assert "<img src=x" not in answer.text
        await user.open("/?draft=bear")
        await user.should_see(evil, retries=100)
        assert user.client is not None
        markup = [element.content for element in user.client.elements.values() if isinstance(element, ui.html)]
        assert not any(evil in content for content in markup)

    visit(look)


@pytest.mark.parametrize("name", ['x" onclick="alert(1)" y.png', "two\nlines.png", "a\\b.png"])
def test_the_name_of_a_photo_becomes_no_attribute_of_the_page(
    name: str, studio: Studio, draft: Draft, visit: Callable[..., None]
) -> None:
    (draft.teach / "0.png").rename(draft.teach / name)

    async def look(user: User) -> None:
        await user.open("/?draft=bear")
        await user.should_see(marker="caption-1.png", retries=100)
        assert user.client is not None
        attributes = [element._props for element in user.client.elements.values()]
        assert not any("onclick" in each for each in attributes)
        labels = {each.get("aria-label") for each in attributes}
        assert {name, f"Caption of {name}", f"Only to judge: {name}", f"Mask of {name}", f"Remove {name}"} <= labels

    visit(look)


def test_a_folder_outside_of_the_chosen_ones_is_not_copied(
    studio: Studio, tmp_path: Path, visit: Callable[..., None]
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.png").write_bytes(photo(1))

    async def look(user: User) -> None:
        await user.open("/")
        user.find(marker="folder").type(str(tmp_path / "private"))
        user.find(marker="copy-folder").click()
        await until(lambda: any("is not in" in message for message in user.notify.messages))
        assert not list(studio.places.photos.iterdir())

    visit(look)


def test_a_draft_without_photos_or_category_cannot_be_taught(studio: Studio) -> None:
    empty = Draft.create(studio.places.photos, "a")
    with pytest.raises(OptionError, match="no photo to learn from"):
        empty.job("a", model="pocket")
    (empty.teach / "0.png").write_bytes(photo(1))
    with pytest.raises(OptionError, match="The category is empty"):
        empty.job("a", model="pocket")


def test_damaged_settings_are_defaults(studio: Studio) -> None:
    draft = Draft.create(studio.places.photos, "a")
    (draft.folder / "draft.json").write_text('{"category": 3, "token": "<a>", "steps": true}')
    assert draft.settings == Settings(token="<a>")
