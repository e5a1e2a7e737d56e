"""Evaluations in run folders: interrupted, resumed, and the cached pre-edit pass."""

from __future__ import annotations

import json

import pytest

from errata.errors import RunError
from errata.evaluation import evaluate
from errata.store.runs import load_run
from tests.evaluation.stubs import Planted


def settled(summary):
    return json.dumps({**summary, "seconds": None})


def timeless(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize(
    ("regime", "stop_after"),
    [("single", 3), ("single", 0), ("batch:2", 2), ("sequential:3", 5)],
)
@pytest.mark.parametrize("torn", [b"", b'{"id": "case-5", "que', b"\x00\x00\n"])
def test_a_killed_run_is_resumed_to_the_same_summary(lm, cases, tmp_path, regime, stop_after, torn):
    def run(editor, out, **more):
        return evaluate(
            lm, editor, cases, regime=regime, top_k=9, stack_size=2, out=out, bootstrap=50, **more
        )

    whole = run(Planted(), tmp_path / "whole")
    killed = Planted()
    killed.stop_after = stop_after
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(killed, folder)
    done = load_run(folder).records
    assert len(done) < len(cases)
    with (folder / "records.jsonl").open("ab") as handle:
        handle.write(torn)
    editor = Planted()
    resumed = run(editor, folder, resume=True)
    assert settled(resumed.summary) == settled(whole.summary)
    assert timeless(resumed.records) == timeless(whole.records)
    stored = load_run(folder)
    assert stored.summary == resumed.summary
    assert timeless(sorted(stored.records, key=lambda r: r["id"])) == timeless(whole.records)
    finished = {record["id"] for record in done}
    for case in cases:
        if case.id in finished and regime == "single":
            assert case.edits[0].prompt not in editor.edited


def test_a_finished_run_resumes_to_itself(lm, cases, tmp_path):
    first = evaluate(lm, Planted(), cases, out=tmp_path / "r", bootstrap=20)
    editor = Planted()
    again = evaluate(lm, editor, cases, out=tmp_path / "r", bootstrap=20, resume=True)
    assert editor.calls == []
    assert settled(first.summary) == settled(again.summary)
    assert again.folder == tmp_path / "r"


def test_a_unit_on_record_in_part_is_completed(lm, cases, tmp_path):
    whole = evaluate(lm, Planted(), cases, regime="batch:3", out=tmp_path / "r", bootstrap=0)
    path = tmp_path / "r" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    again = evaluate(
        lm, Planted(), cases, regime="batch:3", out=tmp_path / "r", bootstrap=0, resume=True
    )
    assert timeless(again.records) == timeless(whole.records)
    assert len(path.read_bytes().splitlines()) == len(cases)


def test_resume_refuses_other_settings_and_names_them(lm, cases, tmp_path):
    evaluate(lm, Planted(), cases[:2], out=tmp_path / "r", data_name="d")
    with pytest.raises(RunError, match=r"protocol\.top_k was 5, is 3"):
        evaluate(lm, Planted(), cases[:2], out=tmp_path / "r", data_name="d", top_k=3, resume=True)
    with pytest.raises(RunError, match=r"data\.cases was 2, is 3"):
        evaluate(lm, Planted(), cases[:3], out=tmp_path / "r", data_name="d", resume=True)
    with pytest.raises(RunError, match=r"editor\.name was 'planted', is 'none'"):
        evaluate(lm, "none", cases[:2], out=tmp_path / "r", data_name="d", resume=True)
    with pytest.raises(RunError, match="already holds a run"):
        evaluate(lm, Planted(), cases[:2], out=tmp_path / "r", data_name="d")
    evaluate(lm, Planted(), cases[:2], out=tmp_path / "r", data_name="d", stack_size=1, resume=True)
    evaluate(lm, "none", cases[:2], out=tmp_path / "r", data_name="d", force=True)
    assert load_run(tmp_path / "r").records[0]["editor"] == "none"


class TestBefore:
    @pytest.fixture
    def passes(self, lm, monkeypatch):
        """Count the rows scored without a patch."""
        rows = []
        score = type(lm).score

        def counted(self, given, **more):
            rows.append(len(given))
            return score(self, given, **more)

        monkeypatch.setattr(type(lm), "score", counted)
        return rows

    def test_computed_once_and_found_again(self, lm, cases, passes, tmp_path, monkeypatch):
        monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
        first = evaluate(lm, Planted(), cases)
        assert passes[0] == 14  # all locality questions
        with_pass = len(passes)
        passes.clear()
        again = evaluate(lm, Planted(2.0), cases)
        assert len(passes) == with_pass - 1
        assert len(list((tmp_path / "preedit").iterdir())) == 1
        assert first.summary["cases"] == again.summary["cases"]

    def test_damaged_files_are_made_again(self, lm, cases, tmp_path, monkeypatch):
        monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
        first = evaluate(lm, Planted(), cases, bootstrap=0)
        (file,) = (tmp_path / "preedit").iterdir()
        good = file.read_text()
        for bad in (good[: len(good) // 2], good.replace("1", "2"), "", "[]"):
            file.write_text(bad)
            again = evaluate(lm, Planted(), cases, bootstrap=0)
            assert timeless(again.records) == timeless(first.records)
            assert file.read_text() == good

    def test_other_questions_are_asked_anew(self, lm, cases, tmp_path, monkeypatch):
        monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
        evaluate(lm, "none", cases)
        evaluate(lm, "none", cases[:3])
        assert len(list((tmp_path / "preedit").iterdir())) == 2

    def test_another_model_is_asked_anew(self, lm, llama_lm, cases, tmp_path, monkeypatch):
        monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
        for model in (lm, llama_lm):
            assert evaluate(model, "none", cases).summary["locality"] == 1.0

    def test_a_cache_that_cannot_be_written_costs_only_time(
        self, lm, cases, tmp_path, monkeypatch, caplog
    ):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "file"))
        assert evaluate(lm, "none", cases).summary["locality"] == 1.0
        assert "cannot be kept" in caplog.text
