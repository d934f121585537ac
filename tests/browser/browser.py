"""Chromium and pages of the dashboard. What a page logs as an error, or raises, fails the test that opened it."""

import contextlib
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from harness import Failure, equal, true

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SCREENSHOTS = os.environ.get("QUANTD_SCREENSHOTS", "")
SECONDS = 30


class Browser:
    def __init__(self):
        self.playwright = sync_playwright().start()
        self.chromium = self.playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

    def close(self):
        self.chromium.close()
        self.playwright.stop()

    @contextlib.contextmanager
    def page(self, daemon, place="#/", width=1440, height=900, theme="light", expected=(), **more):
        """A page of its own profile. expected: parts of console errors that the test causes."""
        context = self.chromium.new_context(viewport={"width": width, "height": height}, color_scheme=theme, **more)
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        faults = []
        page.on("pageerror", lambda error: faults.append("raised: %s" % error))
        page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda request: None if request.url.startswith(url_of(daemon)) else faults.append("request of " + request.url))
        try:
            if place is not None:
                page.goto(url_of(daemon) + place)
            yield page
            unexpected = [fault for fault in faults if not any(part in fault for part in expected)]
            equal(unexpected, [], "what the page complained about")
        except Exception as error:
            if SCREENSHOTS:
                os.makedirs(SCREENSHOTS, exist_ok=True)
                page.screenshot(path=os.path.join(SCREENSHOTS, "failure.png"))
            if faults and not isinstance(error, Failure):
                raise Failure("%s\n    the page complained: %r" % (error, faults)) from error
            raise
        finally:
            context.close()


def url_of(daemon):
    return "http://127.0.0.1:%d/" % daemon.port


def shows(page, selector, text=None):
    """Waits until an element of that selector, with that text, can be seen; the first of them."""
    found = page.locator(selector)
    if text is not None:
        found = found.filter(has_text=text)
    found.first.wait_for(state="visible")
    return found.first


def picture(page, name):
    if SCREENSHOTS:
        os.makedirs(SCREENSHOTS, exist_ok=True)
        page.screenshot(path=os.path.join(SCREENSHOTS, name + ".png"), full_page=True)


def accessible(page, what):
    """No finding of axe-core that is serious or critical."""
    found = [violation for violation in Axe().run(page).response["violations"] if violation["impact"] in ("serious", "critical")]
    lines = ["%s: %s, at %s" % (one["id"], one["help"], "; ".join(str(node["target"]) for node in one["nodes"][:3])) for one in found]
    equal(lines, [], "serious findings of axe-core in " + what)


def fits(page, what):
    """The page does not scroll sideways."""
    wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    true(wide[0] <= wide[1], "%s is as wide as the window: %r" % (what, wide))
