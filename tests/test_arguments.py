"""The Python interface, handed things of another kind than is meant: a sentence, no traceback."""

# what these tests hand over is wrong on purpose
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.arguments import a, expect, expect_whole, path_of, settings_by_name, several
from errata.case import Case, Edit, Probe
from errata.config import Settings, settings_from
from errata.editors import get_editor
from errata.editors.ft import FineTuning
from errata.errors import ArgumentError, ConfigError, DataError, ErrataError
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.export import to_lora
from errata.patch.stack import Stack
from tests.conftest import build

EDIT = Edit("Anna lives in", "Rome", subject="Anna")
CASE = Case("1", (EDIT,))

CALLS: dict[str, tuple[Callable[[LM, Path], Any], str]] = {
    # a model's name, or a model of transformers, where errata's own is meant
    "edit, a name": (lambda lm, out: errata.edit("gpt2", EDIT), "the model is a str"),
    "edit, of transformers": (lambda lm, out: errata.edit(lm.model, EDIT), "a GPT2LMHeadModel"),
    "evaluate, a name": (lambda lm, out: errata.evaluate("gpt2", "ft", [CASE]), "is a str"),
    "trace, nothing": (lambda lm, out: errata.trace(None, [EDIT]), r"is nothing \(None\)"),
    "train, a name": (lambda lm, out: errata.train("gpt2", "mend", [CASE], out), "is a str"),
    "tune, of transformers": (lambda lm, out: errata.tune(lm.model, "ft"), "GPT2LMHeadModel"),
    "an editor's edit": (lambda lm, out: get_editor("ft").edit(lm.model, [[EDIT]]), "GPT2LM"),
    "applied to": (lambda lm, out: Patch().applied(lm.model).__enter__(), "GPT2LMHeadModel"),
    "compared on": (lambda lm, out: Patch().compare("gpt2", ["a"]), "the model is a str"),
    "exported for": (lambda lm, out: to_lora(lm.model, Patch(), out), "GPT2LMHeadModel"),
    "a stack on": (lambda lm, out: Stack(lm.model, [Patch()]), "GPT2LMHeadModel"),
    "an LM of a name": (lambda lm, out: LM("gpt2", lm.tokenizer), "a model of transformers"),
    # editors
    "an editor's class": (lambda lm, out: errata.edit(lm, EDIT, editor=FineTuning), "the class F"),
    "editors, a number": (lambda lm, out: errata.edit(lm, EDIT, editor=[3]), "one of the editors"),
    "evaluate a class": (lambda lm, out: errata.evaluate(lm, FineTuning, [CASE]), "the class Fi"),
    "train what cannot be": (
        lambda lm, out: errata.train(lm, get_editor("ft"), [CASE], out), "a FineTuning; expected a",
    ),
    "train by a mapping": (
        lambda lm, out: errata.train(lm, "mend", [CASE], out, config={"steps": 1}), "TrainConfig",
    ),
    "no name": (lambda lm, out: get_editor(None), "the editor is nothing"),
    "settings, a text": (lambda lm, out: get_editor("ft", "lr=1"), "expected a mapping"),
    "published, a number": (lambda lm, out: get_editor("ft", as_published=3), "as_published"),
    # edits and cases
    "edits, texts": (lambda lm, out: errata.edit(lm, ["a", "b"]), "one of group 0 is a str"),
    "one edit, no list": (lambda lm, out: get_editor("ft").edit(lm, [EDIT]), "group 0 is an Edit"),
    "after, a path": (lambda lm, out: errata.edit(lm, EDIT, editor="ft", after="p"), "after is t"),
    "cases, edits": (lambda lm, out: errata.evaluate(lm, "ft", [EDIT]), "one of the cases is an E"),
    "cases, one": (lambda lm, out: errata.evaluate(lm, "ft", CASE), "is a Case"),
    "cases, none": (lambda lm, out: errata.evaluate(lm, "ft", None), "is nothing"),
    "learned, a text": (lambda lm, out: errata.train(lm, "mend", "world", out), "the text 'world'"),
    "learned, edits": (lambda lm, out: errata.train(lm, "mend", [EDIT], out), "is an Edit"),
    "facts, texts": (lambda lm, out: errata.trace(lm, ["a"]), "one of the facts is a str"),
    "saved the wrong way round": (
        lambda lm, out: errata.save_cases([CASE], out), "the file is a list; expected a path",
    ),
    "a prompt, no list": (lambda lm, out: lm.generate("Anna lives in"), "the text 'Anna lives in'"),
    "a patch of numbers": (lambda lm, out: Patch([1]), "one of the changes is an int"),
    "a stack of texts": (lambda lm, out: Stack(lm, ["p"]), "one of the stack is a str"),
    "a stack, a patch": (lambda lm, out: Stack(lm, Patch()), "the stack is a Patch"),
    # paths, numbers and the rest
    "a run, a number": (lambda lm, out: errata.evaluate(lm, "ft", [CASE], out=3), "expected a p"),
    "a patch, nothing": (lambda lm, out: Patch.load(None), "the folder of a patch is nothing"),
    "saved nowhere": (lambda lm, out: Patch().save(3), "the folder of a patch is an int"),
    "a report, a number": (lambda lm, out: errata.report(3), "is an int; expected run folders"),
    "limit, a text": (lambda lm, out: errata.load_cases("world", limit="3"), "limit is '3'"),
    "limit, a share": (lambda lm, out: errata.load_cases("world", limit=0.5), "limit is 0.5"),
    "options, a list": (lambda lm, out: errata.load_cases("world", options=[1]), "a mapping"),
    "traced, a text": (lambda lm, out: errata.trace(lm, EDIT, limit="x"), "limit is 'x'"),
    "minutes, a text": (lambda lm, out: errata.tune(lm, "ft", minutes="x"), "minutes is a str"),
    "protocol, a number": (
        lambda lm, out: errata.evaluate(lm, "ft", [CASE], protocol=3), "the protocol is an int",
    ),
    "judge, a number": (
        lambda lm, out: errata.evaluate(lm, "ft", [CASE], protocol="wild", judge=3), "the judge is",
    ),
    "a limit, a number": (
        lambda lm, out: errata.edit(lm, [EDIT], editor="ft", regime="sequential", stop_when=2),
        "stop_when is an int",
    ),
    "a model, a number": (lambda lm, out: errata.load(3), "the model is an int"),
    "a dtype, a number": (lambda lm, out: errata.load("pocket", dtype=3), "dtype is an int"),
    "a device, a number": (lambda lm, out: errata.load("pocket", device=3), "device is an int"),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_what_is_of_another_kind_is_named(what: str, tmp_path: Path) -> None:
    call, message = CALLS[what]
    with pytest.raises(ArgumentError, match=message) as caught:
        call(build("gpt2"), tmp_path / "out")
    assert isinstance(caught.value, TypeError)
    assert "expected" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_types_and_devices_of_torch_are_taken() -> None:
    lm = errata.load("pocket", dtype=torch.float64, device=torch.device("cpu"))
    assert lm.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edit("a b", "c", subject_rephrases="abc"), "subject_rephrases is the text 'abc'"),
        (lambda: Probe("a", "b", "generalty", "c"), "is of kind 'generalty'"),
        (lambda: Probe("a", "b", "choice", "c", choices="yes"), "choices is the text 'yes'"),
        (lambda: Case("1", EDIT), "edits of case '1' is an Edit"),
        (lambda: Case("1", ["a"]), "one of the edits of case '1' is a str"),
        (lambda: Case("1", [EDIT], [EDIT]), "one of the probes of case '1' is an Edit"),
    ],
)
def test_a_text_is_no_list_of_letters(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_lists_are_taken_where_tuples_are_kept() -> None:
    case = Case("1", [EDIT], [Probe("Eve lives in", "Rome", "locality", "p")])
    assert isinstance(case.edits, tuple)
    assert isinstance(case.probes, tuple)
    hash(case.edits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: errata.Protocol(answers="freely"), "Protocol: setting 'answers' is 'freely'"),
        (lambda: errata.Protocol(answer="wild"), "Protocol: unknown setting 'answer'"),
        (lambda: errata.TrainConfig(steps="many"), "TrainConfig: setting 'steps' is 'many'"),
        (lambda: FineTuning.Config(lr=-1), "FtConfig: setting 'lr' is -1"),
    ],
)
def test_settings_built_by_hand(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class Inner(Settings):
    count: int = 0


class Outer(Settings):
    inner: Inner = Inner()


def test_settings_within_settings_say_where_they_are() -> None:
    with pytest.raises(ConfigError, match=r"recipe: setting 'inner.count' is 'many'"):
        settings_from(Outer, {"inner": {"count": "many"}}, where="recipe")


def test_a_run_without_a_folder_cannot_be_gone_on_with() -> None:
    with pytest.raises(ErrataError, match="there is no run to go on with"):
        errata.evaluate(build("gpt2"), "ft", [CASE], resume=True)


def test_what_a_message_says() -> None:
    with pytest.raises(ArgumentError) as caught:
        expect([], str, "the name", "a text", "Type: x")
    assert str(caught.value) == "the name is a list; expected a text\nType: x"
    assert [a(int), a(Edit), a(str)] == ["an int", "an Edit", "a str"]
    for wrong in (True, 1.5, "3", None):
        with pytest.raises(ArgumentError, match="expected a whole number"):
            expect_whole(wrong, "n")
    expect_whole(torch.tensor(3), "n")
    assert path_of("a/b", "p") == Path("a/b")
    assert several((n for n in (1, 2)), "numbers") == (1, 2)
    assert settings_by_name(None, "settings") == {}
