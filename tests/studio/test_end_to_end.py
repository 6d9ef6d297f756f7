"""The studio as a person uses it, in headless Chromium: slow, and skipped where Chromium is not installed."""

import signal
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from moongate.concept import Concept
from studio.browser import Page, Server, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("studio"))
    try:
        yield server
    finally:
        server.stop()


def test_an_example_is_taught_and_its_preview_appears_though_the_server_is_killed(page: Page, server: Server) -> None:
    page.size(1400)
    page.open(server.address)
    page.choose("An example of pocket", "drawn-owl")
    page.click("Use the example")
    wait_for(lambda: "draft=drawn-owl" in page.driver.current_url)
    page.sees("Reads: drawing of a <owl1> owl in a meadow")
    wait_for(lambda: len([address for address in page.pictures() if "/previews/" in address]) == 10)
    steps = page.field("Steps")
    steps.send_keys(Keys.CONTROL, "a")
    steps.send_keys("20", Keys.TAB)
    page.sees("--steps 20")
    page.click("Start the training")
    page.sees("drawn-owl is running")
    server.stop(signal.SIGKILL)
    server.start()
    page.open(server.address + "/watch")
    page.sees("Step 10: drawing of a <owl1> owl")
    wait_for(lambda: any("validation-000010" in address for address in page.pictures()), what="the preview")
    page.open(server.address)
    page.sees("drawn-owl is done")
    concept = Concept.load(server.folder / "concepts" / "drawn-owl.safetensors")
    assert (concept.subjects[0].token, concept.record["steps"]) == ("<owl1>", 20)


@pytest.mark.parametrize("path", ["/", "/watch", "/library", "/compose", "/gallery", "/judge"])
def test_pages_load_from_their_own_server_alone_and_fit_a_narrow_window(page: Page, server: Server, path: str) -> None:
    page.problems()  # those of an earlier test, which killed the server
    page.size(400)
    page.open(server.address + path)
    page.sees("Moongate")
    wait_for(lambda: page.driver.execute_script("return document.getElementById('main') !== null"))
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 400
    assert [address for address in page.requested() if not address.startswith((server.address, "data:", "blob:"))] == []
    assert page.problems() == []


def test_the_pages_are_reached_and_used_with_the_keyboard_alone(page: Page, server: Server) -> None:
    page.size(1400)
    page.open(server.address)
    page.sees("What do you teach?")
    keys = page.driver.switch_to.active_element
    keys.send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the page"
    for _ in range(2):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Watch"
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    wait_for(lambda: page.driver.current_url.endswith("/watch"))
