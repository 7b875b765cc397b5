"""A real browser for the tests of pages: Debian's Chromium, drawing WebGL in software."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FLAGS = ("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")


@contextmanager
def browser(*flags: str) -> Iterator:
    """Playwright's browser. Where there is none the test is skipped; with CI set in the environment it fails."""
    path = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if not path:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no browser: needs Debian's chromium and playwright")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        try:
            yield opened
        finally:
            opened.close()
