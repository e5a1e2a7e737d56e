"""Long sequences: stopped anywhere, they go on to the same records."""

from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import errata.evaluation.sequence as sequence
from errata.case import Case, Edit
from errata.editors import get_editor
from errata.errors import RunError
from errata.evaluation import evaluate
from errata.evaluation.sequence import SideBySide, joined
from errata.patch import LowRank, Patch
from errata.store.folders import write_folder
from errata.store.runs import RunFolder, load_run
from tests.evaluation.conftest import make_case
from tests.evaluation.stubs import Planted

NUMBER_OF_CASES = 14


class Remembering(Planted):
    """Adds what it remembers of all edits so far: wrong at once if its state is lost."""

    name = "remembering"

    def edit_groups(self, lm, groups, before):
        added = super().edit_groups(lm, groups, before)
        for i, (patch, old) in enumerate(zip(added, before, strict=True)):
            past = old.state.get("sum", torch.zeros(1, dtype=torch.float64))
            count = old.state.get("count", 0) + len(groups[i])
            (first, *rest) = patch.changes
            assert isinstance(first, LowRank)
            total = past + first.A.double().sum()
            first = LowRank(first.path, first.B * (1 + 0.1 * torch.tanh(total)), first.A)
            state = {"sum": total, "count": count}
            added[i] = Patch((first, *rest), patch.edits, state, patch.meta)
        return added


@pytest.fixture(autouse=True)
def _every_step(monkeypatch):
    monkeypatch.setattr(sequence, "CHECKPOINT_SHARE", float("inf"))


@pytest.fixture
def many() -> list[Case]:
    return [make_case(i, bad=i == 4) for i in range(NUMBER_OF_CASES)]


def run(lm, editor, cases, out, **more):
    settings = {"regime": "sequential:6", "batch": 2, "retention": True, "every": 1,
                "stack_size": 4, "top_k": 9, "bootstrap": 20}  # fmt: skip
    return evaluate(lm, editor, cases, out=out, **{**settings, **more})


def timeless(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def settled(summary):
    return json.dumps({**summary, "seconds": None})


class TestResume:
    @pytest.mark.parametrize("stack_size", [4, 1])
    def test_stopped_at_any_step(self, lm, many, tmp_path, stack_size):
        """Two sequences side by side and a third behind them, or one after another."""
        first = Remembering(0.4)
        whole = run(lm, first, many, tmp_path / "whole", stack_size=stack_size)
        assert whole.summary["failed"] == 1
        steps = len(first.calls)
        for stop in random.Random(stack_size).sample(range(steps), 4):
            killed, folder = Remembering(0.4), tmp_path / f"stopped-{stop}"
            killed.stop_after = stop
            with pytest.raises(KeyboardInterrupt):
                run(lm, killed, many, folder, stack_size=stack_size)
            editor = Remembering(0.4)
            again = run(lm, editor, many, folder, stack_size=stack_size, resume=True)
            assert timeless(again.records) == timeless(whole.records)
            assert settled(again.summary) == settled(whole.summary)
            assert timeless(load_run(folder).records) == timeless(whole.records)
            # at most the step that was stopped is done twice; a failing batch takes several calls
            assert len(killed.calls) + len(editor.calls) <= steps + 4
            assert not list(folder.glob("checkpoint*"))

    def test_stopped_between_the_last_step_and_the_records(self, lm, many, tmp_path, monkeypatch):
        whole = run(lm, Remembering(), many[:6], tmp_path / "whole")
        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "append", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(lm, Remembering(), many[:6], tmp_path / "r")
        editor = Remembering()
        again = run(lm, editor, many[:6], tmp_path / "r", resume=True)
        assert editor.calls == []
        assert timeless(again.records) == timeless(whole.records)

    def test_records_cut_in_the_middle_of_a_flight(self, lm, many, tmp_path):
        """Two sequences side by side of which one is on record: both are done again together."""
        whole = run(lm, Remembering(), many, tmp_path / "r")
        path = tmp_path / "r" / "records.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:6]))
        again = run(lm, Remembering(), many, tmp_path / "r", resume=True)
        assert timeless(again.records) == timeless(whole.records)

    def test_another_stack_size_starts_its_sequences_again(self, lm, many, tmp_path):
        whole = run(lm, Remembering(), many, tmp_path / "whole")
        killed = Remembering()
        killed.stop_after = 2
        with pytest.raises(KeyboardInterrupt):
            run(lm, killed, many, tmp_path / "r")
        again = run(lm, Remembering(), many, tmp_path / "r", resume=True, stack_size=1)
        left, right = timeless(again.records), timeless(whole.records)
        assert [r["immediate"] if "immediate" in r else None for r in left] == [
            r["immediate"] if "immediate" in r else None for r in right
        ]
        assert [[q["hits"] for q in r["questions"]] for r in left] == [
            [q["hits"] for q in r["questions"]] for r in right
        ]

    def test_a_damaged_checkpoint_is_not_used(self, lm, many, tmp_path, caplog):
        whole = run(lm, Remembering(), many, tmp_path / "whole")
        for number, damage in enumerate(
            (
                lambda folder: (folder / "0" / "patch.safetensors").write_bytes(b"cut"),
                lambda folder: (folder / "sequences.json").unlink(),
                lambda folder: (folder / "sequences.json").write_text('{"format": 1'),
                lambda folder: folder.rename(folder.with_name("checkpoint.part")),
            )
        ):
            folder = tmp_path / str(number)
            killed = Remembering()
            killed.stop_after = 2
            with pytest.raises(KeyboardInterrupt):
                run(lm, killed, many, folder)
            (found,) = folder.glob("checkpoint.*")
            damage(found)
            again = run(lm, Remembering(), many, folder, resume=True)
            assert timeless(again.records) == timeless(whole.records)
            assert not list(folder.glob("checkpoint*"))
        assert caplog.text.count("is not used") == 3

    def test_a_full_disk_is_said_and_costs_nothing(self, lm, many, tmp_path, monkeypatch):
        whole = run(lm, Remembering(), many, tmp_path / "whole")
        written = []

        def full(folder, files, **options):
            if "checkpoint" in str(folder):
                written.append(files)
                if len(written) == 6:
                    folder.mkdir(parents=True, exist_ok=True)
                    raise OSError(errno.ENOSPC, "No space left on device")
            write_folder(folder, files, **options)

        with monkeypatch.context() as patched:
            patched.setattr("errata.patch.folder.write_folder", full)
            with pytest.raises(RunError, match="No space left") as caught:
                run(lm, Remembering(), many, tmp_path / "r")
        assert caught.value.exit_code == 1
        (kept,) = (tmp_path / "r").glob("checkpoint*")
        assert kept.name != "checkpoint.part"
        editor = Remembering()
        again = run(lm, editor, many, tmp_path / "r", resume=True)
        assert editor.calls[0][1][0].edits  # not from the start
        assert timeless(again.records) == timeless(whole.records)

    def test_force_forgets_it(self, lm, many, tmp_path):
        killed = Remembering()
        killed.stop_after = 2
        with pytest.raises(KeyboardInterrupt):
            run(lm, killed, many, tmp_path / "r")
        editor = Remembering()
        run(lm, editor, many[:6], tmp_path / "r", force=True)
        assert editor.calls[0][1][0].edits == ()
        assert not list((tmp_path / "r").glob("checkpoint*"))

    def test_a_real_editor(self, lm, many, tmp_path):
        """Fine-tuning on top of fine-tuning, its patch through the checkpoint and back."""
        cases = [case for case in many[:7] if "FAIL" not in case.edits[0].prompt]

        def editor(stop=None):
            made = get_editor("ft", {"layers": [1], "steps": 3})
            edit, calls = made.edit, []

            def counted(*args, **more):
                calls.append(args)
                if stop is not None and len(calls) > stop:
                    raise KeyboardInterrupt
                return edit(*args, **more)

            made.edit = counted
            return made, calls

        whole = run(lm, editor()[0], cases, tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            run(lm, editor(stop=2)[0], cases, tmp_path / "r")
        made, calls = editor()
        again = run(lm, made, cases, tmp_path / "r", resume=True)
        assert len(calls) == 1
        assert timeless(again.records) == timeless(whole.records)


def _interrupt(*args):
    raise KeyboardInterrupt


def _half(folder, error):
    with folder.new_checkpoint() as path:
        (path / "x").write_text("half")
        raise error


CHILD = """
import sys, time
import errata.evaluation.sequence as sequence
sequence.CHECKPOINT_SHARE = float("inf")
from errata.evaluation import evaluate
from tests.evaluation.conftest import build, make_case
from tests.evaluation.test_eval_sequences import NUMBER_OF_CASES, Remembering, run
class Slow(Remembering):
    def edit_groups(self, lm, groups, before):
        time.sleep(float(sys.argv[2]))
        return super().edit_groups(lm, groups, before)
cases = [make_case(i, bad=i == 4) for i in range(NUMBER_OF_CASES)]
run(build("gpt2"), Slow(0.4), cases, sys.argv[1], stack_size=1, fluency=5)
"""


def test_a_killed_process_goes_on_to_the_same_records(lm, many, tmp_path):
    whole = run(lm, Remembering(0.4), many, tmp_path / "whole", stack_size=1, fluency=5)
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), "0.5"])
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        steps = [int(path.suffix[1:]) for path in folder.glob("checkpoint.[0-9]*")]
        if max(steps, default=0) >= 1:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(folder.glob("checkpoint.[0-9]*"))
    editor = Remembering(0.4)
    again = run(lm, editor, many, folder, stack_size=1, fluency=5, resume=True)
    assert editor.calls[0][1][0].edits  # not from the start
    assert timeless(again.records) == timeless(whole.records)
    assert settled(again.summary) == settled(whole.summary)


class TestCheckpoints:
    def test_only_the_newest_is_kept(self, tmp_path):
        with RunFolder.create(tmp_path / "r", {}) as folder:
            assert folder.checkpoint() is None
            for number in range(12):
                with folder.new_checkpoint() as path:
                    (path / "x").write_text(str(number))
                assert len(list((tmp_path / "r").glob("checkpoint*"))) == 1
            assert (folder.checkpoint() / "x").read_text() == "11"
            folder.drop_checkpoint()
            assert folder.checkpoint() is None

    def test_what_goes_wrong_leaves_the_old_one(self, tmp_path):
        with RunFolder.create(tmp_path / "r", {}) as folder:
            with folder.new_checkpoint() as path:
                (path / "x").write_text("good")
            for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):
                expected = RunError if isinstance(error, OSError) else KeyboardInterrupt
                with pytest.raises(expected):
                    _half(folder, error)
                assert (folder.checkpoint() / "x").read_text() == "good"
                assert len(list((tmp_path / "r").glob("checkpoint*"))) == 1

    def test_writing_takes_a_bounded_share_of_the_time(self, tmp_path, monkeypatch):
        """Steps of one second and writes of half a second: one write in ten steps."""
        now = [0.0]
        monkeypatch.setattr(sequence, "CHECKPOINT_SHARE", 0.05)
        monkeypatch.setattr(sequence.time, "monotonic", lambda: now[0])
        written = []

        def write(self, folder):
            now[0] += 0.5
            written.append(self.step)

        monkeypatch.setattr(SideBySide, "write", write)
        sequences = SideBySide([0], [[make_case(0)]], 1)
        with RunFolder.create(tmp_path / "r", {}) as folder:
            keeper = sequence.Checkpoints(folder)
            for step in range(1, 41):
                now[0] += 1.0
                sequences.step = step
                keeper.keep(sequences)
        assert written == [1, 11, 21, 31]


def test_batches_count_edits_and_split_no_case(lm):
    double = Case("two", (Edit("Anna is in", "Rome"), Edit("Danielle is in", "Paris")))
    editor = Planted()
    cases = [make_case(0), double, make_case(1), make_case(2), make_case(3)]
    evaluate(lm, editor, cases, regime="sequential:6", batch=2)
    assert [[len(g) for g in groups] for groups, _ in editor.calls] == [[3], [2], [1]]


class TestJoined:
    def test_the_same_changes_in_few_pieces(self, lm):
        editor, patch = Planted(), None
        for i in range(40):
            patch = joined(editor.edit_one(lm, make_case(i).edits, patch))
            assert len(patch.changes) <= 17
        apart = None
        for i in range(40):
            apart = editor.edit_one(lm, make_case(i).edits, apart)
        assert patch.edits == apart.edits
        assert patch.ranks() == apart.ranks() == {lm.site(1).path: 40}
        from errata.patch.deltas import weight_deltas

        left, right = (weight_deltas(lm, p.changes)[lm.site(1).weight] for p in (patch, apart))
        assert (left - right).abs().max() <= 1e-12 * right.abs().max()

    def test_nothing_to_join(self, lm):
        assert joined(None) is None
        patch = Planted().edit_one(lm, make_case(0).edits)
        assert joined(patch) is patch
