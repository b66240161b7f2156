"""NNI's web UI and other pages in Chromium, without a screen.

Needs Debian's chromium and chromium-driver, or others on the path.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "there is no chromium with a chromedriver on the path: apt-get install chromium chromium-driver"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
SECONDS = 60


class Page:
    """A page of the web UI of the manager at ``port``, as a person uses and sees it."""

    def __init__(self, driver: WebDriver, port: int) -> None:
        self.driver, self.address = driver, f"http://127.0.0.1:{port}"

    def open(self, view: str) -> None:
        self.driver.get(f"{self.address}/{view}")

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def click(self, what: str) -> None:
        """Click on the first thing that the XPath ``what`` finds, as soon as there is one."""
        self.wait_for(lambda: self.find(what)[0].click() or True, what)

    def button(self, text: str) -> None:
        self.click(f"//button[normalize-space(.)='{text}' or substring(normalize-space(.), 3)='{text}']")

    @contextmanager
    def new_window(self) -> Iterator[None]:
        """Go on in the window that what is done in the block opens."""
        before = set(self.driver.window_handles)
        yield
        self.wait_for(lambda: set(self.driver.window_handles) - before, "a window")
        self.driver.switch_to.window((set(self.driver.window_handles) - before).pop())
        self.wait_for(lambda: self.text, "its text")

    def find(self, what: str) -> list[WebElement]:
        return self.driver.find_elements(By.XPATH, what)

    def texts(self, what: str) -> list[str]:
        return [element.text for element in self.find(what)]

    def options(self, dropdown: str) -> list[str]:
        """Return what a dropdown, given by its XPath, offers."""
        self.click(dropdown)
        self.wait_for(lambda: self.find("//*[@role='option']"), "options")
        return self.texts("//*[@role='option']")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until ``condition`` holds; what is not there yet, or is being drawn anew, does not hold."""
        wait = WebDriverWait(self.driver, SECONDS, ignored_exceptions=(WebDriverException, IndexError))
        wait.until(lambda driver: condition(), f"{what} did not appear; the page says: {self.text[:2000]}")

    def choose(self, kept: Sequence[str]) -> None:
        """Leave those alone of the open dialog of columns or axes that are in ``kept``."""
        boxes = "//*[contains(@class, 'columns-height')]//*[contains(@class, 'ms-Checkbox-text')]/ancestor::*[input][1]"
        self.wait_for(lambda: self.find(boxes), "the dialog")
        for box in self.find(boxes):
            name = box.find_element(By.CLASS_NAME, "ms-Checkbox-text").text
            if name != "Select all" and box.find_element(By.TAG_NAME, "input").is_selected() != (name in kept):
                box.find_element(By.TAG_NAME, "label").click()
        self.button("Save")


@contextmanager
def web_ui(port: int, profile: Path, *, width: int = 1300, height: int = 1000) -> Iterator[Page]:
    """The web UI in a window of its own, with ``profile`` as the browser's folder."""
    with browser(profile, width=width, height=height) as driver:
        yield Page(driver, port)


@contextmanager
def browser(profile: Path, *, width: int = 1300, height: int = 1000) -> Iterator[WebDriver]:
    """A window of its own, with ``profile`` as the browser's folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--window-size={width},{height}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
