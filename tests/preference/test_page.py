import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moongate.errors import OptionError
from moongate.preference import QUESTIONS, Study, add, picture_key, read_answers, read_sent, write_page
from moongate.preference.making import Subject, make_study
from studio.browser import chromium
from studying import make_picture, make_pictures

HOSTILE = "a <b>dog</b></script><script>document.title='taken'</script>"
PROMPTS = ["a teddy bear", HOSTILE.replace('"', ""), "a bear in the snow"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    methods = {
        name: make_pictures(tmp_path / name, PROMPTS, seed=n * 1000) for n, name in enumerate(("ours", "theirs"))
    }
    for number in range(3):
        make_picture(tmp_path / "photos" / f"{number}.png", seed=5000 + number)
    make_study(tmp_path / "study", methods, [Subject(words="<bear> bear", photos=tmp_path / "photos")])
    return tmp_path / "study"


@pytest.fixture
def data(folder: Path) -> dict[str, Any]:
    page = write_page(Study.open(folder), folder).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return dict(json.loads(found[1]))


def test_the_page_has_everything_in_it_and_asks_nothing_of_others(folder: Path) -> None:
    page = write_page(Study.open(folder), folder).read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'; img-src data:" in page
    assert "@DATA@" not in page
    assert "--ground:" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_asks_the_questions_of_the_paper(data: dict[str, Any]) -> None:
    assert data["questions"] == dict(QUESTIONS)
    assert len(data["trials"]) == 3 + 2  # one prompt names no bear


def test_the_page_does_not_tell_the_methods(folder: Path, data: dict[str, Any]) -> None:
    study = Study.open(folder)
    page = (folder / "judge.html").read_text()
    assert "ours" not in page.replace("colours", "").replace("hours", "").replace("yours", "")
    assert "theirs" not in page
    firsts = [trial[2] for trial in data["trials"]]
    ours = {picture_key(study, n, "ours") for n in range(len(study.items))}
    assert firsts == [min(trial[2:]) for trial in data["trials"]]
    assert len(ours & set(data["pictures"])) == 3


def test_a_text_cannot_end_the_element_that_holds_it(folder: Path) -> None:
    page = write_page(Study.open(folder), folder).read_text()
    assert page.count("</script>") == 2
    assert "document.title='taken'" in page


def test_a_missing_picture_is_named(folder: Path) -> None:
    study = Study.open(folder)
    next((folder / "pictures").iterdir()).unlink()
    with pytest.raises(OptionError, match="is missing or damaged"):
        write_page(study, folder)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with chromium(downloads=tmp_path) as page:
        page.size(400)
        yield page.driver


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_rater_judges_with_keys_and_goes_on_after_the_page_was_closed(
    folder: Path, browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    def press(*keys: str) -> None:
        for key in keys:
            ActionChains(browser).send_keys(key).perform()

    def begin() -> None:
        browser.get(write_page(study, folder).as_uri())
        browser.find_element("id", "rater").send_keys("  an\u00adna\u200f ", "\n")

    def text(name: str) -> str:
        return str(browser.find_element("id", name).text)

    study = Study.open(folder)
    begin()
    assert text("question") == QUESTIONS["text"]
    prompts = []
    for key in "12":
        prompts.append(text("prompt"))
        press(key)
    begin()
    assert text("count") == "2 of 5 answered"
    prompts.append(text("prompt"))
    press("s")
    assert sorted(prompts) == sorted(item.prompt for item in study.items)
    assert text("question") == QUESTIONS["image"]
    assert len(browser.find_elements("css selector", "#targets img")) == 3
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    press("1", "b", "2", "1")
    assert browser.find_element("id", "end").is_displayed()
    assert browser.title == "Which picture is better?"
    press("\n")  # the button that saves has the focus
    saved = WebDriverWait(browser, 20).until(lambda _: [*tmp_path.glob("answers-anna-*.json")])
    assert add(folder, study, read_sent(saved[0], study)) == 5
    answers = read_answers(folder, study)
    assert [one.choice for one in answers] == ["left", "right", "skip", "right", "left"]
    assert [study.items[one.trial.item].prompt for one in answers[:3]] == prompts
