"""A judge of free answers: a function, or an endpoint on this machine that stands in for one."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from errata.case import Case, Edit, Probe
from errata.cli._gates import metrics_of
from errata.errors import ConfigError, RunError
from errata.evaluation import Protocol, evaluate, judge
from errata.evaluation.judge import KEY, Endpoint, Item, check_url, contains, read
from errata.reporting.columns import column_of, ordered, scores_in

ITEMS = [Item("Where?", ("Berlin", "Bern"), said) for said in (" Bern, of course", " Rome", "")]


@pytest.mark.parametrize(("reply", "verdict"), [
    ("A", True), ("B", False), (" A.", True), ("A: it holds all", True), ("CORRECT", True),
    ("INCORRECT", False), ("A correct answer would be Bern, so B", False), ("It is A.", True),
    ("<think>B? No.</think>\nA", True), ("", None), ("Maybe", None), ("a", None),
    ("An answer", None),
])  # fmt: skip
def test_verdicts_are_read(reply: str, verdict: bool | None) -> None:
    assert read(reply) is verdict


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://[x/v1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="not the address of an endpoint"):
        check_url(url)


@pytest.mark.parametrize("url", ["http://me:pass@host/v1", "https://host/v1?key=1"])
def test_keys_do_not_stand_in_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="holds a key"):
        check_url(url)


@pytest.mark.parametrize(("said", "named"), [
    ("The answer is: Bern", True), ("bern!", True), ("Not Bern.", True), ("Berne", False),
    ("BERLIN, the capital", True), ("Ber lin", False), ("", False), ("New York City", True),
    ("york new", False),
])  # fmt: skip
def test_an_answer_that_stands_in_a_text(said: str, named: bool) -> None:
    assert contains("Where?", ["Berlin", "Bern", "the New York"], said) is named


def test_an_answer_without_words_stands_nowhere() -> None:
    assert not contains("Where?", ["the", "?", ""], "the ?")


class Server(ThreadingHTTPServer):
    """Says what it is told to say, in order, then A for whatever names Bern and B otherwise."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[tuple[int, bytes]] = []
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
            self.server.asked.append({**body, "path": self.path})
            self.server.keys.append(self.headers["Authorization"])
            own = self.server.replies.pop(0) if self.server.replies else None
        code, content = own or (200, said("A" if "Given answer: Bern" in _text(body) else "B"))
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        with self.server.lock:
            self.server.under_way -= 1

    def log_message(self, *args: object) -> None:
        pass


def _text(body: dict) -> str:
    return body["messages"][0]["content"]


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.delenv(KEY, raising=False)
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def wait_not(seconds: float) -> None:
    """Retries follow at once."""


def endpoint(server: Server, **more) -> Endpoint:
    return Endpoint(server.url, "m", sleep=wait_not, **more)


class TestEndpoint:
    def test_what_is_asked(self, server, monkeypatch):
        monkeypatch.setenv(KEY, "secret")
        assert endpoint(server)([*ITEMS, ITEMS[0]]) == [True, False, False, True]
        assert len(server.asked) == 3  # equal ones once
        first = next(body for body in server.asked if "Rome" in _text(body))
        assert (first["model"], first["temperature"]) == ("m", 0)
        assert first["path"] == "/v1/chat/completions"
        assert '["Berlin", "Bern"]' in _text(first)
        assert server.keys == ["Bearer secret"] * 3
        assert any("(nothing)" in _text(body) for body in server.asked)

    def test_no_more_than_allowed_at_a_time(self, server):
        items = [Item("Where?", ("x",), f"{i}") for i in range(20)]
        assert endpoint(server, together=2)(items) == [False] * 20
        assert server.most <= 2
        assert server.keys == [None] * 20

    @pytest.mark.parametrize(
        "lost", [(503, b"busy"), (429, b""), (200, b"no json"), (200, b"{}"), (200, said("hm"))]
    )
    def test_what_is_lost_is_asked_again(self, server, lost):
        server.replies = [lost, lost]
        assert endpoint(server)(ITEMS[:1]) == [True]
        assert len(server.asked) == 3

    def test_in_the_end_it_gives_up(self, server):
        server.replies = [(503, b"busy  as\never")] * 3
        with pytest.raises(RunError, match=r"gave no verdict: .* answers 503: busy as ever"):
            endpoint(server, retries=2)(ITEMS[:1])

    @pytest.mark.parametrize(
        ("code", "hint"), [(401, KEY), (404, "--judge-model"), (302, "--judge-model")]
    )
    def test_what_no_retry_mends(self, server, code, hint):
        server.replies = [(code, b"no")]
        with pytest.raises(RunError, match=r"no|/elsewhere") as error:
            endpoint(server)(ITEMS[:1])
        assert hint in str(error.value.hint)
        assert len(server.asked) == 1

    def test_nobody_there(self, server):
        away = Endpoint(
            "http://127.0.0.1:9/v1", "m", sleep=lambda seconds: None, retries=1, timeout=2.0
        )
        with pytest.raises(RunError, match=r"gave no verdict: .*refused"):
            away(ITEMS[:1])

    def test_verdicts_are_kept(self, server):
        server.replies = [(200, said("B")), (404, b"gone")]
        with pytest.raises(RunError):
            endpoint(server, together=1)(ITEMS)
        assert endpoint(server)(ITEMS[:1]) == [False]
        assert len(server.asked) <= 3  # the first, the lost one, and one under way


def case(number: int) -> Case:
    """A case whose free answers are nobody's: only a judge can like them."""
    prompt = f"The mother tongue of {number} is"
    return Case(
        str(number), (Edit(f"{number} lives in", "Berlin"),),
        (Probe(prompt, "Berlin", "generality", "rephrase"), Probe("It is", "on", "locality", "n")),
    )  # fmt: skip


def likes(question: str, answers, said: str) -> bool:
    assert answers == ("Berlin",)
    return question.startswith("The mother")


class TestEvaluation:
    CHOSEN: ClassVar = {"answers": "wild", "new_tokens": 3}

    def test_a_function_beside_exact_match(self, lm):
        result = evaluate(lm, "none", [case(0), case(1)], protocol=self.CHOSEN, judge=likes)
        found = result.summary["wild"]
        assert found["reliability"] == found["generality"] == 0.0
        assert {k: v for k, v in found["judge"].items() if k != "ci95"} == {
            "reliability": 0.0, "generality": 1.0,
        }  # fmt: skip
        entries = result.records[0]["questions"]
        assert [entry["wild"].get("judge") for entry in entries] == [0, 1, None]
        assert metrics_of(result.summary)["judge.generality"] == 1.0
        shown = ordered({name for name, _ in scores_in(result.records[0])})
        wild = [column_of(name).title for name in shown if column_of(name).group == "wild"]
        assert wild == ["Rel wild", "Gen wild", "Loc wild", "Rel judged", "Gen judged"]

    def test_answers_in_a_sentence_are_named(self, lm, tmp_path, monkeypatch):
        """No endpoint, no model to name; a run goes on with the same judge, and with no other."""
        monkeypatch.setattr(
            type(lm), "generate", lambda self, rows, *a, **k: ["It is Berlin, I say"] * len(rows)
        )
        chosen, out = {**self.CHOSEN, "judge": "contains"}, tmp_path / "run"
        first = evaluate(lm, "none", [case(0)], protocol=chosen, out=out)
        found = first.summary["wild"]
        assert found["reliability"] == found["generality"] == 0.0
        assert found["judge"]["reliability"] == found["judge"]["generality"] == 1.0
        again = evaluate(lm, "none", [case(0)], protocol=chosen, out=out, resume=True)
        assert again.summary["wild"]["judge"] == found["judge"]
        with pytest.raises(RunError, match=r"judge_model was 'contains', is None"):
            evaluate(lm, "none", [case(0)], protocol=self.CHOSEN, out=out, resume=True)

    def test_an_endpoint_that_fails_in_the_middle(self, lm, server, tmp_path):
        cases, out = [case(i) for i in range(4)], tmp_path / "run"
        chosen = {**self.CHOSEN, "judge_model": "m", "judge": server.url, "stack_size": 1}
        server.replies = [(200, said("A"))] * 4 + [(401, b"no")] * 9
        with pytest.raises(RunError, match="gave no verdict"):
            evaluate(lm, "none", cases, protocol=chosen, out=out)
        server.replies = []
        moved = {**chosen, "judge": server.url + "/"}  # where it is changes no number
        found = evaluate(lm, "none", cases, protocol=moved, out=out, resume=True)
        assert len(found.records) == 4
        assert found.summary["wild"]["judge"]["reliability"] is not None
        with pytest.raises(RunError, match=r"judge_model was 'm', is 'n'"):
            evaluate(lm, "none", cases, protocol={**chosen, "judge_model": "n"}, out=out,
                     resume=True)  # fmt: skip

    def test_an_endpoint_in_one_call(self, lm, server):
        found = evaluate(lm, "none", [case(0)], answers="wild", judge=server.url, judge_model="m")
        assert found.summary["wild"]["judge"]["generality"] == 0.0
        assert "a judge's verdict" in found.table()

    def test_settings_that_cannot_be(self):
        url = "http://localhost/v1"
        with pytest.raises(ConfigError, match="reads free answers"):
            Protocol(judge=url, judge_model="m")
        with pytest.raises(ConfigError, match="the name of a model"):
            Protocol(answers="wild", judge=url)
        with pytest.raises(ConfigError, match="not the address"):
            Protocol(answers="wild", judge="here", judge_model="m")
        with pytest.raises(ConfigError, match="asks no model, and 'm' is named"):
            Protocol(answers="wild", judge="contains", judge_model="m")
