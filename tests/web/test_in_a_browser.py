"""The whole way in Chromium, as a person goes it: mouse, keyboard, a narrow screen."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.heavy, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture
def address(tmp_path: Path) -> str:
    from uge.web.app import serve

    found: list[str] = []
    ready = threading.Event()

    def opened(text: str) -> None:
        found.append(text)
        ready.set()

    threading.Thread(target=serve, args=(tmp_path / "work", 0, opened), daemon=True).start()
    assert ready.wait(60)
    return found[0]


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A hundred pictures of two kinds, and a part for testing."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 50), ("test", 10)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 128, (16, 16, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_the_whole_way(address: str, browser: Any, images: Path, tmp_path: Path) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    assert "token" not in page.url
    page.set_input_files("#picture", str(images / "train" / "cat" / "0.png"))
    page.wait_for_selector("#pair:not([hidden])")
    assert "PSNR" in page.inner_text("#look-says")
    (tmp_path / "no.png").write_text("no picture")
    page.set_input_files("#picture", str(tmp_path / "no.png"))
    sync_api.expect(page.locator("#look-says")).to_contain_text("no picture that can be read")
    page.set_input_files("#files", str(images))
    sync_api.expect(page.locator("#source-says")).to_contain_text("100 images", timeout=30_000)
    page.select_option("#effort", "low")
    page.click("#protect")
    page.wait_for_selector("#result:not([hidden])", timeout=120_000)
    assert "100 images" in page.inner_text("#result-says")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "copy.zip"
    page.fill("#minutes", "1")
    page.click("#audit")
    page.wait_for_selector("#report:not([hidden])", timeout=180_000)
    assert "%" in page.inner_text("#audit-says")
    with page.expect_popup() as popup:
        page.click("#report")
    popup.value.wait_for_load_state()
    assert popup.value.locator("h1").count() == 1
    assert not [text for text in problems if "400" not in text]


def test_a_cancelled_run_goes_on_by_keyboard_alone(address: str, browser: Any, images: Path) -> None:
    page = browser.new_page()
    page.goto(address)
    page.focus("#path")
    page.keyboard.type(str(images))
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#protect")).to_be_enabled(timeout=30_000)
    page.focus("#effort")
    page.keyboard.type("high")
    page.focus("#protect")
    page.keyboard.press("Enter")
    page.wait_for_selector("#cancel:not([hidden])")
    page.focus("#cancel")
    page.keyboard.press("Enter")
    page.wait_for_selector("#resume:not([hidden])", timeout=60_000)
    assert "you can go on" in page.inner_text("#job-says")
    page.focus("#resume")
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])", timeout=180_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_on_a_telephone(scheme: str, address: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("Protect", "Look into it"):
        assert page.get_by_role("button", name=name, exact=True).is_visible()
    labelled = page.evaluate("[...document.querySelectorAll('input,textarea,select')].every((e) => e.labels.length)")
    assert labelled
