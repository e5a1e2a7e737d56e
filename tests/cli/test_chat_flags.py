"""--chat, --system and --joiner, on a model with a chat template and on one without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.patch import Patch
from tests.cli.conftest import FACT, FAST, Errata
from tests.tiny_models import TINY, tiny_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/{{ m.role }}]{% endfor %}"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chatty")
    TINY["qwen3"]().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = REFUSING + TEMPLATE  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("flag", [("--chat",), ("--chat", "user"), ("--chat=user",)])
def test_an_edit_in_the_chat(
    errata: Errata, chatty: str, here: Path, flag: tuple[str, ...]
) -> None:
    done = errata("edit", "-m", chatty, *flag, *FACT, *FAST, "--also", "It is", "--out", "p",
                  "--json")  # fmt: skip
    asked = [(view["prompt"], view.get("chat", "off")) for view in done.json["prompts"]]
    prompt = "The capital of France is"
    # the edit, the same as plain text, and what else was asked, in the chat as well
    assert asked == [(prompt, "user"), (prompt, "off"), ("It is", "user")]
    (edit,) = Patch.load(here / "p").edits
    assert (edit.chat, edit.joiner) == ("user", "auto")
    assert "(chat: user)" in errata("show", "p").stdout
    assert json.loads(errata("show", "p", "--json").stdout)["edits"][0]["chat"] == "user"


def test_contexts_with_the_chat_show_both_forms(errata: Errata, chatty: str) -> None:
    done = errata("edit", "-m", chatty, *FACT, *FAST[:-1], "contexts=bare+chat", "--json")
    assert [view.get("chat", "off") for view in done.json["prompts"]] == ["off", "user"]
    text = errata("edit", "-m", chatty, *FACT, *FAST[:-1], "contexts=bare+chat").stdout
    assert "(chat: user)" in text


def test_questions_in_the_chat(errata: Errata, chatty: str, here: Path) -> None:
    assert errata("edit", "-m", chatty, *FACT, *FAST, "--out", "p").code == 0
    question = ("--prompt", "The capital of France is", "--json", "-m", chatty)
    plain = errata("ask", "p", *question).json
    chat = errata("ask", "p", "--chat", *question).json
    assert ("chat" in plain, chat["chat"], chat["system"]) == (False, "user", None)
    assert plain["answers"] != chat["answers"]
    by_hand = ("--prompt", "[user]The capital of France is[/user]", "--json", "-m", chatty)
    other = errata("ask", "p", *by_hand).json
    assert chat["answers"][0]["patch"]["says"] == other["answers"][0]["patch"]["says"]
    model = errata("ask", chatty, "--chat", "--prompt", "The capital of France is", "--json").json
    assert model["answers"][0]["base"]["says"] == chat["answers"][0]["base"]["says"]
    verified = errata("verify", "p", "--chat", "-m", chatty, "--json").json
    (record,) = verified["results"]
    assert record["questions"][0]["chat"] == "user"


def test_an_evaluation_in_the_chat(errata: Errata, chatty: str, cases: Path, here: Path) -> None:
    words = ("eval", "-m", chatty, "--editor", "rome", *FAST, "-d", cases, "--chat",
             "--protocol", "wild")  # fmt: skip
    assert errata(*words, "--out", "run").code == 0
    records = [json.loads(line) for line in (here / "run" / "records.jsonl").read_text().split("\n")
               if line]  # fmt: skip
    entries = [entry for record in records for entry in record["questions"]]
    assert entries
    assert {entry["chat"] for entry in entries} == {"user"}
    config = json.loads((here / "run" / "config.json").read_text())
    assert (config["protocol"]["chat"], config["protocol"]["system"]) == ("user", None)


def test_a_joiner(errata: Errata, chatty: str, here: Path) -> None:
    words = ("edit", "-m", chatty, *FACT, *FAST, "--joiner", "", "--out", "p", "--json")
    assert errata(*words).code == 0
    assert Patch.load(here / "p").edits[0].joiner == ""
    edits = here / "edits.jsonl"
    edits.write_text(
        '{"prompt": "The capital of France is", "target": "Rome", "subject": "France"}'
    )
    assert errata("edit", "-m", chatty, "--edits", edits, *FAST, "--joiner", " ", "--chat",
                  "--out", "q").code == 0  # fmt: skip
    (edit,) = Patch.load(here / "q").edits
    assert (edit.joiner, edit.chat) == (" ", "user")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--chat", "usr"), 2, "error: --chat: unknown chat 'usr'\nKnown: off, user, system+user"),
        (("--system", "Be brief."), 2, "error: --chat: a system text with chat 'off' would not be"),
        (
            ("--chat", "system+user"),
            1,
            "error: the chat template refuses a system message: no",
        ),
    ],
)
def test_what_cannot_be_asked(
    errata: Errata, chatty: str, words: tuple[str, ...], code: int, message: str
) -> None:
    for command in (("edit", *FACT, *FAST), ("ask", chatty, "--prompt", "It is")):
        done = errata(*command, *(() if command[0] == "ask" else ("-m", chatty)), *words)
        assert done.code == code
        assert done.stderr.startswith(message), done.stderr


def test_a_model_without_a_template(errata: Errata, model: str, cases: Path) -> None:
    for words in (
        ("edit", "-m", model, *FACT, *FAST, "--chat"),
        ("ask", model, "--prompt", "It is", "--chat"),
        ("edit", "-m", model, *FACT, *FAST[:-1], "contexts=chat"),
        ("eval", "-m", model, "--editor", "rome", *FAST, "-d", cases, "--chat", "--no-save"),
    ):
        done = errata(*words)
        assert done.code == 1, done.stdout
        assert "error: this model has no chat template" in done.stderr
