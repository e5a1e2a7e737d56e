"""One tab: edits, history, undo, two editors, questions, downloads, imports; nothing half done."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import errata
from errata.errors import EditError, ErrataError, ModelError, PatchError, RunError
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.folder import same_tensors
from errata.web.bench import GRACE, Bench
from errata.web.jobs import Job
from errata.web.models import Models
from errata.web.work import Wish
from tests.web.conftest import FAST, SLOW, Clock, done, wish

ENDLESS = {"editors": ("ft",), "settings": SLOW}


def tensors(patch: Patch | None) -> dict[str, torch.Tensor]:
    assert patch is not None
    return {f"{i}.{n}": t for i, c in enumerate(patch.changes) for n, t in c.tensors().items()}


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in lm.model.state_dict().items()}


def until(found: Callable[[], object]) -> None:
    for _ in range(3000):
        if found():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen")


def begun(job: Job) -> None:
    """Wait until fine-tuning is on its way."""
    until(lambda: job.progress.done > 2 or not job.running)
    assert job.running, job.error


# ---------------------------------------------------------------------- editing


def test_an_edit_is_that_of_the_library_and_asks_what_it_has_to(bench: Bench, lm: LM):
    before = weights(lm)
    done(bench.edit(wish(others=("In France, the capital is",), questions=("The river is",))))
    settings = {"mom2_adjustment": False, "steps": 2, "contexts": "bare"}
    wanted = errata.edit(lm, "The capital of France is", "Rome", subject="France", **settings)
    assert same_tensors(tensors(bench.patch), tensors(wanted))
    now = bench.history.now
    assert now is not None
    (made,) = now.made
    assert made.patch.report.as_dict() == wanted.report.as_dict()
    assert [(g.kind, [v.prompt for v in g.views]) for g in made.groups] == [
        ("edit", ["The capital of France is"]),
        ("others", ["In France, the capital is"]),
        ("questions", ["The river is"]),
    ]
    (view,) = made.groups[1].views
    with wanted.applied(lm):
        (score,) = lm.score([lm.row("In France, the capital is", "Rome")])
    assert view.p_after == pytest.approx(torch.tensor(score.logprobs).sum().exp().item())
    assert same_tensors(before, weights(lm))


def test_history_builds_up_and_is_undone_and_done_again(bench: Bench, lm: LM):
    patches: list[Patch | None] = [None]
    for subject, target in (("France", "Rome"), ("Italy", "Paris"), ("Berlin", "Rome")):
        done(bench.edit(wish(subject, target)))
        patches.append(bench.patch)
    assert [len(patch.edits) for patch in patches if patch is not None] == [1, 2, 3]
    with pytest.raises(RunError, match="nothing to redo"):
        bench.redo()
    for number in (2, 1, 0):
        bench.undo()
        assert bench.patch is patches[number]
    with pytest.raises(RunError, match="nothing to undo"):
        bench.undo()
    bench.redo()
    assert bench.patch is patches[1]
    done(bench.edit(wish("Berlin", "Paris")))  # what was undone is dropped
    assert [step.label for step in bench.history.steps] == ["France → Rome", "Berlin → Paris"]
    patch = bench.patch
    assert patch is not None
    assert [edit.subject for edit in patch.edits] == ["France", "Berlin"]


def test_two_editors_side_by_side_and_either_may_be_kept(bench: Bench):
    done(bench.edit(wish()))
    first = bench.patch
    done(bench.edit(wish("Italy", "Paris", editors=("rome", "ft"))))
    now = bench.history.now
    assert now is not None
    assert [one.editor for one in now.made] == ["rome", "ft"]
    assert bench.patch is now.made[0].patch
    bench.choose(1)
    assert bench.patch is now.made[1].patch
    for one in now.made:  # both stand on the same edit
        assert [edit.subject for edit in one.patch.edits] == ["France", "Italy"]
    with pytest.raises(RunError, match="no such result"):
        bench.choose(2)
    bench.undo()
    assert bench.patch is first


def test_questions_are_asked_without_and_with_the_edits(bench: Bench, lm: LM):
    asked = ["The capital of France is", "The river flows through"]
    plain = lm.generate(asked, 8)
    done(bench.ask(asked))
    assert bench.answer is not None
    assert bench.answer.rows == tuple((q, says, None) for q, says in zip(asked, plain, strict=True))
    done(bench.edit(wish()))
    assert bench.answer is None
    done(bench.ask([*asked, "  "]))
    assert bench.patch is not None
    with bench.patch.applied(lm):
        edited = lm.generate(asked, 8)
    assert bench.answer is not None
    assert bench.answer.rows == tuple(zip(asked, plain, edited, strict=True))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"prompt": " "}, "question is empty"),
        ({"target": ""}, "new answer is empty"),
        ({"prompt": "x" * 3000}, "3,000 characters"),
        ({"editors": ("rome", "rome")}, "same"),
    ],
)
def test_what_can_be_seen_at_once_is_said_at_once(bench: Bench, given, match):
    fields = {"prompt": "The capital of France is", "subject": "France", "target": "Rome"}
    with pytest.raises(EditError, match=match):
        bench.edit(Wish(**{**fields, **given}))
    assert not bench.busy


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"subject": ""}, "what the fact is about"),
        ({"subject": "Spain"}, "Spain"),
        ({"editors": ("rmoe",)}, "unknown editor"),
        ({"settings": ("stepz=3",)}, "stepz"),
        ({"settings": ("steps",)}, "steps"),
        ({"editors": ("mend",), "settings": ()}, "train"),
    ],
)
def test_mistakes_are_sentences_and_lose_nothing(bench: Bench, lm: LM, given, match):
    done(bench.edit(wish()))
    before, steps = weights(lm), list(bench.history.steps)
    fields = {"prompt": "The capital of Italy is", "subject": "Italy", "target": "Paris"}
    job = bench.edit(Wish(**{"settings": FAST, **fields, **given}))
    assert job.wait(60)
    assert bench.error is not None
    assert match in f"{bench.error}"
    assert "--subject" not in f"{bench.error}"
    assert bench.history.steps == steps
    assert same_tensors(before, weights(lm))
    bench.undo()
    assert bench.error is None


def test_models_that_are_not_there_are_refused(bench: Bench, models: Models, tmp_path: Path):
    for name, match in (("", "no model is named"), (str(tmp_path / "no"), "no folder")):
        with pytest.raises(ModelError, match=match):
            bench.load(name)
    with pytest.raises(ModelError, match="no folder"):
        bench.load("owner/name")  # the Hub is not asked
    assert models.check(str(tmp_path)) == str(tmp_path)
    strict = Models(lambda name: pytest.fail("loaded"), ["mine"], anywhere=False)
    with pytest.raises(ModelError, match="not one of the models"):
        strict.check(str(tmp_path))


def test_one_thing_at_a_time_and_a_model_first(models: Models, open_bench, tmp_path: Path):
    empty = Bench(models, tmp_path / "empty")
    with pytest.raises(RunError, match="no model is loaded"):
        empty.edit(wish())
    bench = open_bench()
    job = bench.edit(wish(**ENDLESS))
    for act in (bench.undo, lambda: bench.edit(wish()), lambda: bench.choose(0)):
        with pytest.raises(RunError, match="still running"):
            act()
    bench.cancel()
    assert job.wait(30)


# ---------------------------------------------------------------------- cancelled and left


def test_cancelled_in_the_middle_the_model_is_what_it_was(bench: Bench, lm: LM):
    done(bench.edit(wish()))
    before, patch = weights(lm), bench.patch
    job = bench.edit(wish("Italy", "Paris", **ENDLESS))
    begun(job)
    assert job.progress.what == "tuning, step"
    assert job.progress.total == 1_000_000
    until(lambda: job.progress.left)
    bench.cancel()
    assert job.wait(30)
    assert bench.stopped
    assert bench.error is None
    assert bench.patch is patch
    assert same_tensors(before, weights(lm))
    assert lm.installed.nothing
    assert not any(m._forward_pre_hooks for m in lm.model.modules())
    done(bench.edit(wish("Italy", "Paris")))  # and it goes on


def test_stopped_while_a_patch_is_applied_nothing_stays(bench: Bench, lm: LM, monkeypatch):
    """Stopped in front of a block, in the middle of a pass under a patch."""
    done(bench.edit(wish()))
    before = weights(lm)
    check = Job.check

    def stop_under_a_patch(job: Job) -> None:
        if lm.installed.applied:
            job.cancel()
        check(job)

    monkeypatch.setattr(Job, "check", stop_under_a_patch)
    job = bench.ask(["The capital of France is"])
    assert job.wait(30)
    assert bench.stopped
    assert same_tensors(before, weights(lm))
    assert lm.installed.nothing


def test_a_model_that_was_not_restored_is_loaded_again(lm: LM, tmp_path: Path, tiny):
    loads = []
    broken = tiny("llama")

    def load(name: str) -> LM:
        loads.append(name)
        return broken if len(loads) == 1 else lm

    models = Models(load, ["it"])
    with models.lock:
        found = models.get("it")
        _ = found.fingerprint
        assert models.restored("it")
        parameter = next(found.model.parameters())
        kept = parameter.detach().clone()
        try:
            parameter.data.add_(1.0)
            assert not models.restored("it")
        finally:
            parameter.data.copy_(kept)
        assert models.get("it") is lm
    assert loads == ["it", "it"]


def test_a_tab_that_is_gone_ends_its_work_after_a_while_unless_it_comes_back(open_bench, lm: LM):
    clock = Clock()
    bench = open_bench(clock)
    job = bench.edit(wish(**ENDLESS))
    begun(job)
    bench.leave()
    clock.now += GRACE - 1
    bench.come()  # the page was loaded again
    clock.now += GRACE
    assert not job.wait(0.2)
    bench.leave()
    clock.now += GRACE + 1
    assert job.wait(30)
    assert job.stopped
    assert bench.history.steps == []
    bench.come()
    done(bench.edit(wish()))


def test_tabs_do_not_mix_and_wait_for_each_other(open_bench, lm: LM):
    one, two = open_bench(), open_bench()
    done(one.edit(wish()))
    assert two.patch is None
    job = one.edit(wish("Italy", "Paris", **ENDLESS))
    begun(job)
    waits = two.edit(wish("Berlin", "Rome"))
    assert waits.progress.waits
    one.cancel()
    done(waits)
    assert [edit.subject for edit in two.patch.edits] == ["Berlin"]
    assert [edit.subject for edit in one.patch.edits] == ["France"]


def test_each_model_keeps_its_history(bench: Bench, lm: LM, models: Models, tiny, monkeypatch):
    done(bench.edit(wish()))
    other = tiny("llama")
    monkeypatch.setattr(models, "_load", {lm.name: lm, "other": other}.__getitem__)
    monkeypatch.setattr(models, "offered", (lm.name, "other"))
    done(bench.load("other"))
    assert bench.patch is None
    done(bench.load(lm.name))
    assert bench.patch is not None


# ---------------------------------------------------------------------- taken along and brought


@pytest.mark.parametrize("form", ["patch", "lora", "gguf"])
def test_what_is_taken_along_can_be_brought_back(bench: Bench, open_bench, lm: LM, form):
    done(bench.edit(wish()))
    done(bench.edit(wish("Italy", "Paris")))
    done(bench.export(form))
    there = bench.download
    assert there is not None
    assert there.path.suffix == ".zip"
    assert str(bench.folder) not in there.use
    with zipfile.ZipFile(there.path) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist()}
        assert folder == there.path.stem
        texts = [archive.read(n) for n in archive.namelist() if n.endswith((".md", "Modelfile"))]
    assert not any(str(bench.folder).encode() in text for text in texts)

    other = open_bench()
    done(other.bring([there.path]))
    assert bench.patch is not None
    assert other.patch is not None
    asked = ["The capital of France is", "The capital of Italy is"]
    found = []
    for patch in (bench.patch, other.patch):
        with patch.applied(lm):
            found.append(lm.score([lm.row(prompt, "Rome") for prompt in asked]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine.logprobs, theirs.logprobs, rtol=1e-4, atol=1e-4)
    assert [edit.subject for edit in other.patch.edits] == ["France", "Italy"]
    assert other.history.steps[0].label == f"imported {there.path.name}"
    assert [path.name for path in other.folder.iterdir()] == []
    other.undo()
    assert other.patch is None


def test_an_import_replaces_and_is_undone(bench: Bench, open_bench):
    other = open_bench()
    done(other.edit(wish("Italy", "Paris")))
    done(other.export("patch"))
    assert other.download is not None
    done(bench.edit(wish()))
    first = bench.patch
    done(bench.bring([other.download.path]))
    assert bench.patch is not None
    assert [edit.subject for edit in bench.patch.edits] == ["Italy"]
    assert "Undo" in bench.notice
    bench.undo()
    assert bench.patch is first
    assert bench.notice == ""


def test_a_patch_of_another_model_and_a_broken_one_are_refused(bench: Bench, tiny, tmp_path: Path):
    other = tiny("llama")
    settings = {"mom2_adjustment": False, "steps": 1, "contexts": "bare", "ask": False}
    patch = errata.edit(other, "The capital of France is", "Rome", subject="France", **settings)
    folder = patch.save(tmp_path / "foreign")
    files = sorted(folder.iterdir())
    job = bench.bring(files)
    assert job.wait(30)
    assert isinstance(bench.error, PatchError)
    assert "made for tiny-llama" in bench.error.message
    (folder / "patch.safetensors").write_bytes(b"\x08" + bytes(40))
    job = bench.bring(files)
    assert job.wait(30)
    assert isinstance(bench.error, ErrataError)
    assert "checksum" in bench.error.message
    assert str(bench.folder) not in str(bench.error)
    assert bench.history.steps == []
    assert list(bench.folder.iterdir()) == []


def test_nothing_to_take_along(bench: Bench):
    with pytest.raises(PatchError, match="no edit to take along"):
        bench.export("patch")


def test_what_cannot_be_a_lora_is_refused_in_words(bench: Bench):
    done(bench.edit(wish(editors=("grace",), settings=("steps=1",))))
    job = bench.export("lora")
    assert job.wait(30)
    assert isinstance(bench.error, PatchError)
    assert bench.download is None
