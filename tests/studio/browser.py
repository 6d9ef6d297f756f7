"""Headless Chromium of the system, and a studio that it visits. Where it is missing, tests are skipped."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

__all__ = ["Page", "Server", "chromium", "free_port", "wait_for"]

PATIENCE_S = 600
"""Longest wait for something to appear; on a loaded computer a training of twenty steps takes minutes."""

MOST_TABS = 150
"""Presses of Tab that go through any page once."""


def wait_for(condition: Callable[[], Any], *, what: str = "it") -> Any:
    """Wait until a condition gives something, and return that."""
    end = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(WebDriverException, OSError):
            if found := condition():
                return found
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """`moongate studio` as a process."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options, self.port = folder, options, free_port()
        self.start()

    def start(self) -> None:
        words = ["studio", "--folder", str(self.folder), "--port", str(self.port), *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "moongate", *words], env=environment)
        wait_for(self.answers, what="the first page")

    def answers(self) -> bool:
        assert self.process.poll() is None, "the studio ended"
        try:
            with urllib.request.urlopen(self.address + "/", timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait()


class Page:
    """A browser window, driven as a person does: by labels and texts."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get(address)

    def size(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def dark(self, is_dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def sees(self, text: str) -> None:
        wait_for(lambda: text in self.text(), what=f"{text!r} on the page")

    def button(self, text: str) -> WebElement:
        path = f"//button[contains(normalize-space(.), {_quoted(text)}) or @aria-label={_quoted(text)}]"
        found: WebElement = wait_for(lambda: self.driver.find_element(By.XPATH, path), what=f"the button {text!r}")
        return found

    def click(self, text: str) -> None:
        """Press a button as soon as it can be pressed."""

        def press() -> bool:
            button = self.button(text)
            if not button.is_enabled():
                return False
            button.click()
            return True

        wait_for(press, what=f"the button {text!r}")

    def field(self, label: str) -> WebElement:
        selector = f"[aria-label={_quoted(label)}]"
        found: WebElement = wait_for(
            lambda: self.driver.find_element(By.CSS_SELECTOR, selector), what=f"the field {label!r}"
        )
        return found

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, name: str) -> None:
        """Press Tab until what has the focus has this name, as a person does who uses no mouse."""

        def is_reached() -> bool:
            for _ in range(MOST_TABS):
                if self.focused().casefold() == name.casefold():
                    return True
                self.press(Keys.TAB)
            return False

        wait_for(is_reached, what=f"the focus on {name!r}")

    def focused(self) -> str:
        """Return the name of what has the focus, as a screen reader says it: without its icon."""
        return str(self.driver.execute_script(NAME))

    def choose(self, label: str, value: str) -> None:
        """Choose an entry of a list."""
        self.field(label).click()
        path = f"//*[contains(@class, 'q-item')][normalize-space(.)={_quoted(value)}]"
        wait_for(lambda: self.driver.find_element(By.XPATH, path), what=value).click()

    def give(self, paths: str) -> None:
        """Give files, one path a line, to the page's only drop zone."""

        def given() -> bool:
            self.driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(paths)
            return True

        wait_for(given, what="the field for files")

    def pictures(self) -> list[str]:
        """Return the addresses of the pictures that have been loaded."""
        script = "return [...document.images].filter(i => i.complete && i.naturalWidth > 0).map(i => i.src)"
        return list(self.driver.execute_script(script))

    def requested(self) -> list[str]:
        """Return the addresses of everything that the page has loaded."""
        script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        return list(self.driver.execute_script(script))

    def screenshot(self, file: Path) -> None:
        self.driver.save_screenshot(str(file))

    def poor_contrast(self) -> list[str]:
        """Return the texts whose color is too near that of their ground for WCAG 2, level AA."""
        return list(self.driver.execute_script(CONTRAST))

    def problems(self) -> list[str]:
        """Return errors of the browser, among them what the content security policy refused."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextlib.contextmanager
def chromium(*, downloads: Path | None = None) -> Iterator[Page]:
    """Start headless Chromium, which saves files to `downloads`, or skip the test where it is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("Chromium and its driver are not installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(option)
    if downloads:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Page(window)
    finally:
        window.quit()


def _quoted(text: str) -> str:
    return f'"{text}"'


NAME = """
const focused = document.activeElement.cloneNode(true)
focused.querySelectorAll('[aria-hidden=true]').forEach(each => each.remove())
return (focused.getAttribute('aria-label') || focused.textContent).trim().replace(/\\s+/g, ' ')
"""

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
