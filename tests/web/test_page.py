"""The page in a real browser: `make test-web`.

The server is a process of its own, as a user starts it, whose connections are written down. The
browser is the system's chromium (or ERRATA_CHROMIUM), else Playwright's own. With ERRATA_WEB_SHOTS
set to a folder, pictures of the page are left there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.web.bench import GRACE

pytestmark = [pytest.mark.web, pytest.mark.timeout(1800)]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SLOWEST = 120_000  # milliseconds, on a machine that does other things as well
ENDLESS = "steps=1000000\nstop_loss=0"

WATCHED = """
import sys
told = open(sys.argv[1], "a")
def hook(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        print("connect", args[1][0], file=told, flush=True)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        print("look up", args[0], file=told, flush=True)
sys.addaudithook(hook)
sys.argv = ["errata", "web", *sys.argv[2:]]
from errata.cli.app import main
main()
"""
"""Starts the command, and writes down what its process connects to."""


class Server:
    """The page as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, folder / "stderr.txt"
        self.connections = folder / "connections.txt"
        (folder / "tmp").mkdir()
        environment = {
            **os.environ, "ERRATA_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp"),
        }  # fmt: skip
        with self.said.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WATCHED, self.connections, "--port", "0"],
                stderr=stderr, stdout=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        self.url = self._address()

    def _address(self) -> str:
        for _ in range(1200):
            found = re.search(r"http://127\.0\.0\.1:\d+/", self.said.read_text())
            if found:
                return found[0]
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.1)
        pytest.fail("the server has not started")

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]
    except ImportError:
        pytest.skip("playwright is not installed: make test-web")
    own = os.environ.get("ERRATA_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        if own is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no chromium: .web/bin/python -m playwright install chromium")
        started = playwright.chromium.launch(
            executable_path=own, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


ASKED: list[str] = []
"""Addresses that the browser has asked for, in all tests."""


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Open the page in a new tab, with a model loaded."""
    contexts, wrong = [], []

    def open_page(url: str = server.url, *, dark: bool = False, size: Any = DESKTOP) -> Any:
        context = browser.new_context(
            viewport=size, color_scheme="dark" if dark else "light", has_touch=size is PHONE
        )
        contexts.append(context)
        context.on("request", lambda request: ASKED.append(request.url))
        page = context.new_page()
        page.set_default_timeout(SLOWEST)
        page.on("pageerror", lambda error: wrong.append(f"{error}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.goto(url)
        page.wait_for_selector("#about .model")
        page.wait_for_function("document.querySelector('#prompt textarea').value != ''")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def shot(page: Any, name: str) -> None:
    folder = os.environ.get("ERRATA_WEB_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def field(page: Any, name: str) -> Any:
    return page.locator(f"#{name} textarea, #{name} input").first


def choose(page: Any, name: str, label: str) -> None:
    """Choose from a list of Gradio's."""
    field(page, name).click()
    page.get_by_role("option", name=label, exact=True).last.click()  # one that closes fades away


def accordion(page: Any, label: str) -> None:
    page.get_by_role("button", name=label).click()


def edit(page: Any, subject: str, target: str) -> None:
    field(page, "prompt").fill(f"The capital of {subject} is the city named")
    field(page, "subject").fill(subject)
    field(page, "target").fill(target)
    page.click("#edit")
    page.wait_for_selector(f"#result h2:text-is('{subject} → {target}')")
    page.wait_for_selector("#edit:not([disabled])")


def fits(page: Any) -> bool:
    """Whether nothing has to be scrolled sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def texts(page: Any, where: str) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(where).all_inner_texts()]


# ---------------------------------------------------------------------- a visit


def test_edits_side_by_side_and_undone(visit):
    page = visit()
    shot(page, "desktop-1-open")
    assert "pocket" in page.inner_text("#about")
    assert page.is_disabled("#undo")

    page.click("#edit")  # the example
    page.wait_for_selector("#status progress")
    shot(page, "desktop-2-works")
    page.wait_for_selector("#result table")
    page.wait_for_selector("#edit:not([disabled])")
    shot(page, "desktop-3-edited")
    result = page.inner_text("#result")
    for words in ("France → Tokyo", "The edit", "In other words", "Neighbours", "Your questions"):
        assert words in result
    row = page.locator("#result table").first.locator("td").all_inner_texts()
    assert "Paris" in row[1]
    assert "✓ “Tokyo" in row[2]
    assert fits(page)
    page.locator("#result details summary").last.click()
    assert page.locator("#result .likely").last.is_visible()

    choose(page, "editor", "FT")
    choose(page, "second", "UltraEdit")
    edit(page, "Italy", "Oslo")
    shot(page, "desktop-4-two-editors")
    assert "after FT" in texts(page, "#result th")
    assert "after UltraEdit" in texts(page, "#result th")
    page.locator("#keep").get_by_label("UltraEdit").check()
    page.wait_for_selector("#history li.now:has-text('by UltraEdit')")

    page.click("#undo")
    page.wait_for_selector("#history li.now:has-text('France')")
    page.click("#undo")
    page.wait_for_selector("#history li.now:has-text('unedited')")
    assert page.is_disabled("#undo")
    page.click("#redo")
    page.wait_for_selector("#history li.now:has-text('France')")


def test_taken_along_in_every_form_and_imported_in_another_tab(visit, tmp_path: Path):
    page = visit()
    choose(page, "editor", "FT")
    edit(page, "France", "Tokyo")
    accordion(page, "Take it along")
    kept = []
    for label in ("Patch (errata)", "LoRA", "GGUF"):
        page.locator("#form").get_by_label(label).check()
        page.click("#pack")
        name = {"Patch (errata)": "tokyo.zip"}.get(label, f"tokyo-{label.lower()}.zip")
        page.wait_for_selector(f"#file:has-text('{name}')")
        with page.expect_download() as download:
            page.click("#file")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        kept.append(path)
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    shot(page, "desktop-5-taken-along")
    assert [path.name for path in kept] == [
        "france-tokyo.zip", "france-tokyo-lora.zip", "france-tokyo-gguf.zip",
    ]  # fmt: skip

    other = visit()
    accordion(other, "Import")
    for path in kept:
        other.locator("#uploads input[type=file]").set_input_files(str(path))
        other.wait_for_selector(f"#uploads:has-text('{path.stem[:8]}')")
        other.click("#bring")
        other.wait_for_selector(f"#history li.now:has-text('imported {path.name}')")
        assert "✓ “Tokyo" in other.locator("#result table").first.inner_text()
        other.locator("#uploads").get_by_label("Clear").click()
    shot(other, "desktop-6-imported")


def test_on_a_phone_in_the_dark(visit):
    page = visit(dark=True, size=PHONE)
    shot(page, "phone-1-open")
    assert fits(page)
    choose(page, "editor", "FT")
    choose(page, "second", "UltraEdit")
    edit(page, "Spain", "Lima")
    assert fits(page)
    shot(page, "phone-2-edited")
    accordion(page, "Other words, own questions, settings")
    accordion(page, "Take it along")
    accordion(page, "Import")
    shot(page, "phone-3-all-open")
    assert fits(page)
    light = visit(size=PHONE)
    shot(light, "phone-4-light")
    colours = [p.evaluate("getComputedStyle(document.body).backgroundColor") for p in (page, light)]
    assert colours[0] != colours[1]


def test_in_the_dark_on_a_desktop(visit):
    page = visit(dark=True)
    choose(page, "editor", "FT")
    edit(page, "Peru", "Oslo")
    shot(page, "desktop-7-dark")


# ---------------------------------------------------------------------- what goes wrong


def test_mistakes_are_sentences(visit, server: Server, tmp_path: Path):
    page = visit()
    field(page, "target").fill("")
    page.click("#edit")
    page.wait_for_selector("#status [role=alert]:has-text('the new answer is empty')")
    field(page, "target").fill("Tokyo")
    field(page, "subject").fill("")
    page.click("#edit")
    page.wait_for_selector("#result [role=alert]:has-text('what the fact is about')")
    shot(page, "desktop-8-mistake")
    field(page, "model").fill("/no/such/folder")
    field(page, "model").press("Enter")
    page.click("#load")
    page.wait_for_selector("#status [role=alert]:has-text('no folder and no GGUF file')")
    accordion(page, "Import")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK no archive")
    page.locator("#uploads input[type=file]").set_input_files(str(broken))
    page.wait_for_selector("#uploads:has-text('broken')")
    page.click("#bring")
    page.wait_for_selector("#result [role=alert]:has-text('no readable zip archive')")
    assert "Traceback" not in page.inner_text("body")
    assert "Traceback" not in server.said.read_text()


def test_texts_are_not_obeyed(visit):
    page = visit()
    hostile = "<img src=x onerror=window.hacked=1>"
    accordion(page, "Other words, own questions, settings")
    field(page, "others").fill(hostile)
    field(page, "questions").fill(hostile)
    field(page, "settings").fill("steps=2")
    choose(page, "editor", "FT")
    field(page, "prompt").fill(f"The capital of {hostile} is")
    field(page, "subject").fill(hostile)
    field(page, "target").fill(hostile)
    page.click("#edit")
    page.wait_for_selector("#history li.now:has-text('onerror')")
    page.wait_for_selector("#edit:not([disabled])")
    assert hostile in page.inner_text("#result")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#result img, #history img").count() == 0


def test_cancelled_and_nothing_is_changed(visit):
    page = visit()
    choose(page, "editor", "FT")
    edit(page, "France", "Tokyo")
    accordion(page, "Other words, own questions, settings")
    field(page, "settings").fill(ENDLESS)
    page.click("#edit")
    page.wait_for_selector("#status:has-text('of 1,000,000')")
    page.wait_for_selector("#status:has-text('left')")
    shot(page, "desktop-9-cancel")
    assert page.is_disabled("#undo")
    page.click("#cancel")
    page.wait_for_selector("#result:has-text('Cancelled. Nothing was changed.')")
    assert texts(page, "#history li") == ["the unedited model", "France → Tokyo by FT ← now"]


def test_tabs_do_not_mix_and_one_that_leaves_in_the_middle_loses_nothing(visit):
    one, two = visit(), visit()
    assert one.url != two.url
    choose(one, "editor", "FT")
    edit(one, "France", "Tokyo")
    assert texts(two, "#history li") == ["the unedited model ← now"]
    two.click("#ask")
    two.wait_for_selector("#result:has-text('Answers')")
    said = two.inner_text("#result")

    accordion(one, "Other words, own questions, settings")
    field(one, "settings").fill(ENDLESS)
    one.click("#edit")
    one.wait_for_selector("#status:has-text('of 1,000,000')")
    address = one.url
    one.close()
    began = time.monotonic()
    two.click("#ask")
    two.wait_for_selector("#status:has-text('another tab works')")
    two.wait_for_selector("#edit:not([disabled])")
    assert time.monotonic() - began < GRACE + 60
    assert two.inner_text("#result") == said  # the model is what it was

    again = visit(address)
    assert texts(again, "#history li") == ["the unedited model", "France → Tokyo by FT ← now"]
    assert "✓ “Tokyo" in again.locator("#result table").first.inner_text()


def test_the_page_that_is_loaded_again_shows_what_runs(visit):
    page = visit()
    accordion(page, "Other words, own questions, settings")
    field(page, "settings").fill(ENDLESS)
    choose(page, "editor", "FT")
    page.click("#edit")
    page.wait_for_selector("#status:has-text('of 1,000,000')")
    page.reload()
    page.wait_for_selector("#status:has-text('of 1,000,000')")
    page.click("#cancel")
    page.wait_for_selector("#result:has-text('Cancelled')")


# ---------------------------------------------------------------------- this machine alone


def test_files_of_this_machine_are_not_served(visit, server: Server, tmp_path: Path):
    page = visit()
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in ("/etc/passwd", secret, Path.cwd() / "pyproject.toml"):
        for kind in ("file=", "file/"):
            answer = page.request.get(f"{server.url}gradio_api/{kind}{path}")
            assert answer.status in (403, 404), (path, answer.status)
    headers = {"Host": "evil.example"}
    assert page.request.get(server.url, headers=headers).status == 403


def test_nothing_has_left_this_machine(server: Server):
    """After all that the tests above have done."""
    elsewhere = {url for url in ASKED if not url.startswith((server.url, "blob:", "data:"))}
    assert ASKED
    assert elsewhere == set()
    told = set(server.connections.read_text().splitlines())
    assert told <= {"look up 127.0.0.1", "connect 127.0.0.1", "look up None"}


def test_it_ends_with_everything_removed(server: Server):
    assert server.end(signal.SIGTERM) == 0
    said = server.said.read_text()
    assert "all models are as they were" in said
    assert "Traceback" not in said
    assert list((server.folder / "tmp").glob("errata-web-*")) == []
