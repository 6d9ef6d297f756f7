"""Compose and Judge as a person uses them, in headless Chromium: slow, and skipped where Chromium is not installed."""

import signal
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from moongate.concept import Concept
from moongate.preference import Study, read_answers
from moongate.preference.making import make_study
from moongate.studio.places import Places
from moongate.studio.shelf import cards
from studio.browser import Page, Server, wait_for
from studying import make_pictures

pytestmark = pytest.mark.slow


def test_two_concepts_are_merged_and_the_report_is_there_before_a_picture(page: Page, server: Server) -> None:
    first, second, *_ = cards(Places.open(server.folder))
    page.size(1400)
    page.open(server.address + "/compose")
    for card in (first, second):
        page.click(card.title)
        page.sees(f"{card.file}")
    page.sees("How much of each survives")
    page.click("Save the merge")
    out = server.folder / "concepts" / f"{first.name}-{second.name}.safetensors"
    wait_for(out.exists, what="the merged concept")
    assert {each.words for each in Concept.load(out).subjects} == {*first.words, *second.words}
    page.size(400)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 400
    assert page.problems() == []


def test_three_pairs_are_judged_with_keys_and_a_killed_server_loses_none(
    page: Page, server: Server, tmp_path: Path
) -> None:
    methods = {name: make_pictures(tmp_path / name, ["a", "b", "c"], seed=n * 1000) for n, name in enumerate("xy")}
    folder = server.folder / "studies" / "three"
    study = make_study(folder, methods)
    page.size(1400)
    page.open(server.address + "/judge?study=three")
    page.field("Your name").send_keys("anna", Keys.ENTER)
    for number, key in enumerate("12s"):
        page.sees(f"{number} of 3 answered")
        ActionChains(page.driver).send_keys(key).perform()
    page.sees("All questions are answered")
    page.sees("Raters: anna")
    server.stop(signal.SIGKILL)
    assert [one.choice for one in read_answers(folder, Study.open(folder))] == ["left", "right", "skip"]
    assert study.id == Study.open(folder).id
    server.start()
    page.open(server.address + "/judge?study=three")
    page.sees("Raters: anna")
    assert page.driver.find_element(By.TAG_NAME, "h1").text == "Judge"


@pytest.mark.parametrize("path", ["/", "/?draft=penguin", "/watch", "/library", "/compose", "/gallery", "/judge"])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_the_colors_of_texts_have_the_contrast_of_level_aa(
    page: Page, server: Server, path: str, is_dark: bool
) -> None:
    page.size(1400)
    page.dark(is_dark)
    page.open(server.address + path)
    page.sees("Moongate")
    wait_for(lambda: page.driver.execute_script("return document.getElementById('main') !== null"))
    assert page.poor_contrast() == []
    page.dark(False)
