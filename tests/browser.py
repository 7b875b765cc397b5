"""A headless Chromium for tests of pages.

Where there is none the tests skip and say so; with CI set they fail.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCAL = ("file:", "data:", "blob:")
TIMEOUT_MS = 60_000  # WebGL is drawn by the processor, which others may share


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A playwright browser: Debian's Chromium with WebGL drawn in software, and `flags` besides."""
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        missing = "needs Chromium and playwright (apt install chromium; pip install playwright)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


def watched_page(browser: Any) -> tuple[Any, list[str]]:
    """browser: or a context of one.

    Returns a new page, and a list that fills with what must not be: errors, warnings, and requests
    for anything but files and data.
    """
    page, wrong = browser.new_page(), []
    page.set_viewport_size({"width": 1100, "height": 800})
    page.set_default_timeout(TIMEOUT_MS)
    page.on(
        "console",
        lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith(LOCAL) else wrong.append(asked.url)
    )
    return page, wrong
