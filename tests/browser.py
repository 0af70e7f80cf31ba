"""A headless Chromium that opens a file, and tells what went wrong and what was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PHONE = 390


@dataclass
class Visit:
    """What a page said on its console and asked for, how much wider than the window it is, and a picture of it."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    overflow: int = 0
    background: str = ""


@contextmanager
def browsing() -> Iterator[Any]:
    """Run a browser until the block ends; skips the test where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS), headless=True)
        try:
            yield browser
        finally:
            browser.close()


def visit(browser: Any, file: Path, *, width: int = 1200, dark: bool = False, picture: Path | None = None) -> Visit:
    """Open a file as a page in a window of a width, and look at it."""
    seen = Visit()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page.on("console", lambda message: seen.errors.append(message.text))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(file.resolve().as_uri())
    seen.overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    seen.background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if picture is not None:
        page.screenshot(path=str(picture), full_page=True)
    page.close()
    return seen
