"""What a user, a file or a model says is text on the page, and nothing else."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from errata.case import Edit
from errata.errors import ConfigError
from errata.patch import Patch
from errata.patch.compare import View
from errata.web import views
from errata.web.bench import Answer, Bench, Step
from errata.web.jobs import Progress
from errata.web.work import Group, Made
from tests.web.conftest import done, wish

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x1b[31m\u2028"
ALLOWED = {
    "div", "p", "b", "i", "h2", "h3", "table", "thead", "tbody", "tr", "th", "td", "span", "small",
    "details", "summary", "ul", "ol", "li", "code", "progress",
}  # fmt: skip
ATTRIBUTES = {
    "class", "role", "title", "aria-label", "scope", "data-head", "value", "max", "start"
}  # fmt: skip


class Page(HTMLParser):
    """Reads HTML as a browser does, and refuses what is not ours."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.depth: list[str] = []
        self.feed(html)
        self.close()
        assert not self.depth, f"not closed: {self.depth}"

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        self.depth.append(tag)

    def handle_endtag(self, tag):
        assert self.depth.pop() == tag

    def handle_data(self, data):
        self.seen.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.seen)


def hostile_step(two: bool) -> Step:
    edit = Edit(HOSTILE, HOSTILE, HOSTILE)
    neighbour = {"prompt": HOSTILE, "subject": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    lost = {"prompt": HOSTILE, "target": HOSTILE, "subject": HOSTILE, "taken": False}
    patch = Patch(
        edits=(edit,),
        results=({"taken": False, "tried": HOSTILE, "advice": [HOSTILE]},),
        aftermath={
            "neighbours": [{**neighbour, "moved": True}, {**neighbour, "moved": False}],
            "lost": [lost], "weaker": [lost],
            "sentences": {"count": 1, "kl_mean": 0.1, "kl_max": 0.2, "worst": HOSTILE},
        },
    )  # fmt: skip
    words = ((HOSTILE, 0.5), ("Rome", 0.1))
    view = View(HOSTILE, words, words, HOSTILE, HOSTILE, HOSTILE, 0.1, 0.2, False, True)
    groups = tuple(Group(kind, (view, view)) for kind in ("edit", "others", "questions"))
    made = Made(HOSTILE, HOSTILE, patch, groups, 1.0, (HOSTILE,))
    return Step(HOSTILE, (made, made) if two else (made,))


@pytest.mark.parametrize("two", [False, True])
def test_hostile_texts_are_shown_and_not_obeyed(two: bool, models, tmp_path):
    bench = Bench(models, tmp_path)
    bench.model = bench.about = HOSTILE
    bench.history.add(hostile_step(two))
    bench.notice = HOSTILE
    bench.answer = Answer(((HOSTILE, HOSTILE, HOSTILE),))
    whole = "".join([
        views.screen(bench), views.history(bench), views.model_line(bench),
        views.error(ConfigError(HOSTILE, HOSTILE)), views.lines(HOSTILE),
        views.progress(Progress(HOSTILE, 1.0)),
    ])  # fmt: skip
    page = Page(whole)
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in whole


def test_what_moved_comes_first_and_marks_are_not_colours_alone(bench):
    done(bench.edit(wish(questions=("The river is",))))
    shown = views.screen(bench)
    page = Page(shown)
    report = bench.patch.report
    assert report.line() in page.text
    stayed = sum(not entry.moved for entry in (*report.neighbours, *report.bare))
    assert f"{stayed} stayed as they were" in page.text
    first, rest = shown.split("<h3>Neighbours</h3>")[1].split("<details>", 1)
    for entry in report.neighbours:
        assert (views.text(entry.prompt) in first) == entry.moved
        assert (views.text(entry.prompt) in rest) != entry.moved
    assert ("aria-label='taken'" in shown) == report.edits[0].taken
    assert [kind for kind in views.NAMES.values() if kind in page.text]
    history = Page(views.history(bench)).text
    assert "← now" in history
    bench.undo()
    assert "(undone)" in Page(views.history(bench)).text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Progress("loading pocket", 3.2), "loading pocket · 3 s"),
        (Progress("tuning, step", 100.0, 5, 20, 300.0), "5 of 20 · 2 min · about 5 min left"),
        (Progress("x", 1.0, waits=True), "waiting: another tab works on a model · 1 s"),
        (Progress("x", 1.0, ends=True), "x (ends soon) · 1 s"),
    ],
)
def test_progress_in_words(found: Progress, words: str):
    assert words in Page(views.progress(found)).text


def test_mistakes_say_what_to_do():
    page = Page(views.error(ConfigError("the port is taken", "Choose another.")))
    assert page.seen == ["the port is taken", "Choose another."]


@pytest.mark.parametrize(
    ("chat", "says", "hit", "right"),
    [
        ("off", "Tokyo.", True, True),
        ("off", "It is Tokyo.", False, False),
        ("user", "The capital of France is Tokyo.", False, True),
        ("user", "The capital of France is Paris.", False, False),
    ],
)
def test_in_a_chat_the_answer_may_stand_within_a_sentence(chat, says, hit, right):
    view = View("q", (), (), "Paris.", says, "Tokyo", 0.0, 0.1, False, hit, chat)
    assert views.right(view) is right
