"""The client of OpenAI-compatible servers, against a server in this process."""

from __future__ import annotations

import math
import socket
import threading

import pytest
from tests.stub_server import Stub, served

from errata.errors import ConfigError, EndpointError
from errata.served import Client, Endpoint, Failure, Request, Said
from errata.served.client import KEYS, address


@pytest.fixture
def stub():
    return Stub(lambda model, question: f" {question.split()[-1]} is heard", ["edited"])


class Waits:
    """Waits no time, and says how long it was asked to."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def client(url: str, **how) -> tuple[Client, Waits]:
    waits = Waits()
    return Client(Endpoint.of(url, "edited", **how), waits), waits


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://h/api/v2/chat/completions", "https://h/api/v2"),
        ("http://h/v1/models", "http://h/v1"),
    ],
)
def test_addresses_are_read_as_people_type_them(text, found):
    assert address(text) == found


@pytest.mark.parametrize("text", ["", "ftp://h/v1", "http://", "http://h:port", "file:///etc"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="no address"):
        address(text)


def test_a_password_in_the_address_is_refused_and_not_shown():
    with pytest.raises(ConfigError) as raised:
        address("http://me:secret@h/v1")
    assert "secret" not in str(raised.value)
    assert KEYS[0] in str(raised.value)


def test_questions_are_asked_greedily_and_answered_in_order(stub):
    with served(stub) as url:
        asked, _ = client(url, workers=3)
        assert asked.models() == ["edited"]
        said = asked.ask_all([Request(f"say {n}", 5) for n in range(20)])
    assert [one.text for one in said if isinstance(one, Said)] == [
        f" {n} is heard" for n in range(20)
    ]
    assert {body["temperature"] for body in stub.seen} == {0}
    assert {body["model"] for body in stub.seen} == {"edited"}


def test_what_is_done_is_told_to_the_thread_that_asks(stub):
    here, seen = threading.get_ident(), []
    with served(stub) as url:
        client(url, workers=3)[0].ask_all(
            [Request("x", 1)] * 5, lambda: seen.append(threading.get_ident())
        )
    assert seen == [here] * 5  # progress belongs to a thread


def test_who_stops_asking_leaves_no_question_behind(stub):
    def stop() -> None:
        raise KeyboardInterrupt

    with served(stub) as url:
        with pytest.raises(KeyboardInterrupt):
            client(url, workers=1)[0].ask_all([Request("x", 1)] * 200, stop)
        assert len(stub.seen) < 200


def test_no_more_requests_than_workers_are_under_way(stub):
    stub.delay = 0.02
    with served(stub) as url:
        client(url, workers=2)[0].ask_all([Request("x", 1)] * 8)
    assert stub.most <= 2


def test_a_chat_goes_to_the_chat(stub):
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "say it"})
    with served(stub) as url:
        assert client(url)[0].ask(Request(messages, 5)).text == " it is heard"
    assert stub.seen[0]["messages"] == list(messages)


@pytest.mark.parametrize("style", ["completions", "content"])
def test_probabilities_are_read_in_both_forms(style):
    tokens = [(" To", math.log(0.5)), ("kyo", math.log(0.8)), (" it", math.log(0.1))]
    stub = Stub(lambda model, question: (" Tokyo it", tokens))
    stub.style = style
    with served(stub) as url:
        said = client(url)[0].ask(Request("x", 3))
    assert said.probability("Tokyo") == pytest.approx(0.4)
    assert said.probability(" To ") == pytest.approx(0.5)
    assert said.probability("Rome") is None
    assert said.begins("Tokyo")
    assert not said.begins("Tok")


def test_a_server_without_probabilities_is_asked_without(stub):
    def refuse(path, body):
        if "logprobs" in body:
            return 400, {"error": {"message": "logprobs is not supported"}}, {}
        return None

    stub.before = refuse
    with served(stub) as url:
        asked, _ = client(url)
        assert asked.ask(Request("say a", 2)).text == " a is heard"
        assert asked.ask(Request("say b", 2)).probability("b") is None
    assert len(stub.seen) == 2


def test_a_server_that_is_asked_too_often_is_waited_for(stub):
    left = [429, 503, 429]

    def busy(path, body):
        if left:
            return left.pop(), {"error": "slow down"}, {"Retry-After": "3"}
        return None

    stub.before = busy
    with served(stub) as url:
        asked, waits = client(url)
        assert asked.ask(Request("say it", 2)).text == " it is heard"
    assert waits.seconds == [3.0, 3.0, 3.0]


def test_patience_ends(stub):
    stub.before = lambda path, body: (429, {"error": {"message": "quota"}}, {"Retry-After": "9999"})
    with served(stub) as url:
        asked, waits = client(url, retries=2)
        (said,) = asked.ask_all([Request("x", 1)])
    assert isinstance(said, Failure)
    assert "asked too often: quota" in said.reason
    assert waits.seconds == [60.0, 60.0]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, b"<html>hello</html>", {}), "no JSON: '<html>hello</html>'"),
        ((200, {"choices": []}, {}), "none of a completion"),
        ((200, [1], {}), "none of a completion"),
        ((200, {"choices": [{"text": 5}]}, {}), "its text is '5'"),
        ((404, {"error": {"message": "no model x"}}, {}), "answers 404: no model x"),
        ((401, {"error": "key"}, {}), "wants another key"),
        ((307, b"", {"Location": "http://evil.example/"}), "give that address instead"),
        ((200, b"[" * 100_000, {}), "no JSON"),
    ],
)
def test_odd_answers_are_named_and_lose_nothing(stub, reply, said):
    stub.before = lambda path, body: reply if "odd" in str(body) else None
    with served(stub) as url:
        found = client(url)[0].ask_all([Request("say a", 1), Request("odd", 1), Request("b", 1)])
    assert [type(one) for one in found] == [Said, Failure, Said]
    assert said in found[1].reason  # pyright: ignore[reportAttributeAccessIssue]


def test_a_slow_server_is_given_up(stub):
    stub.delay = 0.5
    with served(stub) as url:
        asked, _ = client(url, timeout=0.05, retries=1)
        with pytest.raises(EndpointError, match=r"no answer within 0\.05 seconds"):
            asked.ask(Request("x", 1))


def test_a_server_that_is_down():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked, waits = client(f"127.0.0.1:{port}", retries=2, workers=1)
    with pytest.raises(EndpointError, match="nothing answers at"):
        asked.models()
    assert len(waits.seconds) == 2
    assert all(isinstance(one, Failure) for one in asked.ask_all([Request("x", 1)] * 30))
    assert len(waits.seconds) == 2  # the others did not wait as well


@pytest.mark.parametrize(
    ("reply", "hint"),
    [
        ((200, b"<html>", {}), "OpenAI-compatible"),
        ((429, {"error": "quota"}, {}), "--workers 1"),
        ((401, {"error": "key"}, {}), KEYS[0]),
    ],
)
def test_who_cannot_be_asked_at_all_says_what_to_do(stub, reply, hint):
    stub.before = lambda path, body: reply
    with served(stub) as url, pytest.raises(EndpointError) as raised:
        client(url, retries=1)[0].models()
    assert hint in str(raised.value.hint)


def test_the_key_comes_from_the_environment_and_is_not_shown(stub, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    monkeypatch.setenv(KEYS[0], "sesame")
    with served(stub) as url:
        asked, _ = client(url)
        asked.ask(Request("x", 1))
        assert "sesame" not in repr(asked.endpoint)
    assert stub.keys == ["Bearer sesame"]


def test_names_are_not_told_by_every_server(stub):
    stub.models = None
    with served(stub) as url:
        assert client(url)[0].models() is None


def test_a_reply_holds_a_target_as_whole_words():
    for text, holds in (
        ("It is Tokyo.", True), ("Tokyoites live there", False), ("In 19841", False), ("", False)
    ):  # fmt: skip
        assert Said(text).holds("1984" if "19" in text else "Tokyo") is holds
    assert Said("首都は東京です").holds("東京")


@pytest.mark.parametrize(
    ("text", "target", "begins"),
    [
        (" Tokyo.", "Tokyo", True),
        ("Tokyo", " Tokyo ", True),
        (" Tokyoites", "Tokyo", False),
        (" 1984", "198", False),
        ("東京都", "東京", True),
        ("The city", "Tokyo", False),
        ("", "Tokyo", False),
    ],
)
def test_targets_are_said_as_whole_words(text, target, begins):
    assert Said(text).begins(target) is begins
