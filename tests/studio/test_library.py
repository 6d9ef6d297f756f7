from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nicegui import ui
from nicegui.testing import User

from making import make_concept as make_fitting
from moongate.backbone import Backbone
from moongate.concept import Concept
from moongate.studio.library import FORMATS
from moongate.studio.state import Studio
from studio.conftest import until
from studio_making import make_concept, make_drawing


@pytest.fixture
def bear(studio: Studio) -> Concept:
    concept = make_concept(studio.places.concepts / "bear.safetensors", category="<b>teddy</b> bear")
    make_drawing(studio.places.gallery / "x" / "0.png", "a bear", concept=concept)
    return concept


async def upload(user: User, *files: tuple[str, bytes]) -> None:
    (field,) = user.find(marker="import").elements
    await user.http_client.post(
        field._props["url"],
        files=[(str(key), (name, content, "application/octet-stream")) for key, (name, content) in enumerate(files)],
    )


def test_cards_show_what_files_say_and_a_search_chooses(
    studio: Studio, bear: Concept, visit: Callable[..., None]
) -> None:
    make_concept(studio.places.concepts / "rex.safetensors", token="<rex>", category="dog", value=2.0)

    async def look(user: User) -> None:
        await user.open("/library")
        await user.should_see("<bear> <b>teddy</b> bear", retries=100)
        await user.should_see(bear.hash, retries=100)
        images = [each._props["src"] for each in user.find(kind=ui.element).elements if each.tag == "img"]
        assert any("/gallery/x/0.png" in source for source in images)
        user.find(marker="search").type("DOG tiny")
        await user.should_see("<rex> dog", retries=100)
        await user.should_not_see("teddy", retries=100)
        user.find(marker="search").clear().type("nothing of this kind")
        await user.should_see("No concept has all of these words.", retries=100)

    visit(look)


def test_a_concept_is_renamed_deleted_and_restored(studio: Studio, bear: Concept, visit: Callable[..., None]) -> None:
    places = studio.places

    async def look(user: User) -> None:
        await user.open("/library")
        await user.should_see(marker="rename-bear", retries=100)
        user.find(marker="rename-bear").click()
        user.find(marker="new-name").clear().type("grizzly")
        user.find("Rename it").click()
        await until((places.concepts / "grizzly.safetensors").exists)
        await user.should_see(marker="delete-grizzly", retries=100)
        user.find(marker="delete-grizzly").click()
        await user.should_see("There are no concepts yet.", retries=100)
        await user.should_see(marker="restore-grizzly", retries=100)
        user.find(marker="restore-grizzly").click()
        await until((places.concepts / "grizzly.safetensors").exists)
        await user.should_not_see("Trash", retries=100)

    visit(look)
    assert Concept.load(places.concepts / "grizzly.safetensors").hash == bear.hash


def test_a_concept_is_exported_and_imported_again(
    studio: Studio, tiny_folder: Path, tmp_path: Path, visit: Callable[..., None]
) -> None:
    own = make_fitting(Backbone.load(tiny_folder, device="cpu"))
    own.save(studio.places.concepts / "bear.safetensors")

    async def look(user: User) -> None:
        await user.open("/library")
        await user.should_see(marker="export-bear", retries=100)
        user.find(marker="export-bear").click()
        await user.should_see("--to kohya", retries=100)
        user.find("Write the files").click()
        await user.should_see("Download bear-kohya.safetensors", retries=1200)
        links = {each.text: each._props["href"] for each in _links(user) if "Download" in each.text}
        files = []
        for address in links.values():
            response = await user.http_client.get(address)
            assert response.headers["content-disposition"].startswith("attachment")
            files.append((address.split("?")[0].rsplit("/", 1)[-1], response.content))
        user.find(marker="import-name").type("from outside")
        user.find(marker="import-category").type("bear")
        await upload(user, *files)
        await user.should_see("from-outside was imported", retries=1200)
        await user.should_see("moongate convert", retries=100)

    visit(look)
    again = Concept.load(studio.places.concepts / "from-outside.safetensors")
    assert list(again.tokens) == ["<bear>"]
    assert not [file for file in studio.places.exports.iterdir() if file.name.startswith(".")]


def test_what_is_no_concept_is_refused_and_leaves_nothing(studio: Studio, visit: Callable[..., None]) -> None:
    async def look(user: User) -> None:
        await user.open("/library")
        await upload(user, ("page.html", b"<script>alert(1)</script>"))
        await until(lambda: any("is not a file of weights" in message for message in user.notify.messages))
        await upload(user, ("../../evil.safetensors", b"nonsense"))
        await until(lambda: len(user.notify.messages) == 2)
        assert "evil" in user.notify.messages[1]

    visit(look)
    assert list(studio.places.concepts.glob("*.safetensors")) == []
    assert [file.name for file in studio.places.exports.iterdir()] == []


def test_two_files_of_one_name_that_belong_together_both_reach_the_worker(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, visit: Callable[..., None]
) -> None:
    reached = list[bytes]()

    async def ask(_kind: str, *, source: str, **_arguments: Any) -> dict[str, Any]:
        reached.extend(file.read_bytes() for file in sorted(Path(source).iterdir()))
        return {"format": "A1111", "notes": []}

    monkeypatch.setattr(studio.desk, "ask", ask)

    async def look(user: User) -> None:
        await user.open("/library")
        await upload(user, ("bear.safetensors", b"one"), ("bear.safetensors", b"two"))
        await user.should_see("bear was imported", retries=100)

    visit(look)
    assert sorted(reached) == [b"one", b"two"]


def test_all_formats_are_offered() -> None:
    from moongate.interop import FORMATS as KNOWN

    assert sorted(FORMATS) == sorted(KNOWN)


def _links(user: User) -> list[Any]:
    class Link:
        def __init__(self, element: ui.element) -> None:
            self.text, self._props = getattr(element, "text", "") or "", element._props

    return [Link(each) for each in user.find(kind=ui.element).elements if each.tag == "a"]
