"""The studio as a person uses it, in headless Chromium: slow, and skipped where Chromium is not installed."""

import signal
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from moongate.concept import Concept
from studio.browser import Page, Server, chromium, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as page:
        yield page


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


def test_the_colors_of_texts_have_the_contrast_of_level_aa(page: Page, server: Server) -> None:
    page.size(1400)
    for is_dark in (False, True):
        page.dark(is_dark)
        page.open(server.address)
        page.sees("What do you teach?")
        assert page.driver.execute_script(CONTRAST) == []
    page.dark(False)


CONTRAST = """
function channels(color) {
  const found = color.match(/[\\d.]+/g).map(Number)
  return found.length < 4 ? [...found, 1] : found
}
function luminance([r, g, b]) {
  const linear = [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2]
}
function ground(element) {
  for (let e = element; e; e = e.parentElement) {
    const color = channels(getComputedStyle(e).backgroundColor)
    if (color[3] > .99) return color
  }
  return [255, 255, 255, 1]
}
const poor = []
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
  const style = getComputedStyle(element)
  const box = element.getBoundingClientRect()
  const isShown = box.width && box.height && box.right > 0 && style.visibility === 'visible' && style.opacity === '1'
  if (!own || !isShown || element.closest('[disabled], .disabled, [aria-hidden=true], #popup')) continue
  const [light, dark] = [luminance(channels(style.color)), luminance(ground(element))].sort((a, b) => b - a)
  const contrast = (light + .05) / (dark + .05)
  const text = element.textContent.trim().slice(0, 40)
  if (contrast < 4.5) poor.push(`${element.tagName} "${text}": ${contrast.toFixed(2)}`)
}
return poor
"""
