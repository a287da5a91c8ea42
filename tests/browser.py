"""A real browser for tests of pages: an installed Chromium, driven by Playwright."""

import contextlib
import shutil

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")    # Debian's name first


@contextlib.contextmanager
def browsing():
    """Yields a browser, without a window; skips where none is installed. Nothing is downloaded."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # A container's user may not make namespaces; the pages are our own.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page_of(browser, url, *, size=(1200, 800), is_dark=False, statuses=()):
    """Opens a page; fails if a script of it raises, or something in it is refused or not found.

    Args:
        statuses: of HTTP, with which the server is expected to refuse something.
    """
    context = browser.new_context(viewport=dict(zip(("width", "height"), size)),
                                  color_scheme="dark" if is_dark else "light")
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and not any(
        f"status of {status}" in message.text for status in statuses)
        and faults.append(message.text))
    try:
        page.goto(url)
        yield page
        assert not faults
    finally:
        context.close()
