"""The protocol as one class: what it refuses, what it writes down, and old run folders."""

from __future__ import annotations

import json

import pytest

import errata
from errata.config import settings_from
from errata.errors import ConfigError, DataError, RunError
from errata.evaluation import Protocol, evaluate
from errata.evaluation.configuration import compared, config_hash
from errata.store.runs import load_run
from tests.evaluation.stubs import Broken, Planted


def test_it_is_frozen_and_every_setting_is_described():
    protocol = Protocol(regime="sequential:10", batch=2)
    with pytest.raises(ValueError, match="frozen"):
        protocol.batch = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert all(field.description for field in Protocol.model_fields.values())
    assert settings_from(Protocol, protocol.model_dump(mode="json")) == protocol


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"regime": "seqential:5"}, "unknown regime 'seqential:5'", "Did you mean 'sequential'?"),
        ({"regime": "batch:0"}, "at least 1", "Examples"),
        ({"top_k": 0}, "'top_k' is 0", "Rank that counts as a hit"),
        ({"fluency": -1}, "'fluency' is -1", ""),
        ({"batch": 2}, "batch belongs to sequences", "sequential:100"),
        ({"every": 1, "regime": "batch:4"}, "every belongs to sequences", "sequential:100"),
        ({"suite": "robustnes"}, "unknown suite 'robustnes'", "robustness"),
        ({"suite_set": {"words": 3}}, "suite_set needs a suite", "--suite robustness"),
        ({"suite": "robustness", "suite_set": {"wrods": 3}}, "'wrods'", "'words'"),
        ({"topk": 1}, "unknown setting 'topk'", "'top_k'"),
    ],
)
def test_mistakes(lm, cases, settings, message, hint):
    with pytest.raises(ConfigError) as caught:
        evaluate(lm, Planted(), cases, **settings)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


class TestKeywords:
    def test_those_of_a_named_editor(self, lm, cases, tmp_path):
        found = errata.evaluate(lm, "ft", cases[:1], layers=(2,), steps=2, top_k=3, out=tmp_path)
        config = load_run(tmp_path).config
        assert config["editor"]["config"]["layers"] == [2]
        assert config["editor"]["config"]["steps"] == 2
        assert config["protocol"]["top_k"] == found.summary["top_k"] == 3

    def test_an_unknown_one_is_looked_for_in_both(self, lm, cases):
        with pytest.raises(ConfigError, match="unknown setting 'stepps'") as caught:
            evaluate(lm, "ft", cases, stepps=2)
        assert "'steps'" in (caught.value.hint or "")
        with pytest.raises(ConfigError, match="unknown setting 'retenton'") as caught:
            evaluate(lm, "ft", cases, retenton=True)
        assert "'retention'" in (caught.value.hint or "")

    def test_an_editor_that_is_made_has_its_settings(self, lm, cases):
        with pytest.raises(ConfigError, match="unknown setting 'layer'"):
            evaluate(lm, Planted(), cases, layer=1)

    def test_they_win_over_the_protocol(self, lm, cases):
        protocol = Protocol(top_k=7, regime="batch:2", bootstrap=0)
        summary = evaluate(lm, Planted(), cases, protocol=protocol, top_k=2).summary
        assert (summary["top_k"], summary["regime"]) == (2, "batch:2")
        assert evaluate(lm, Planted(), cases, protocol={"top_k": 9}).summary["top_k"] == 9


def test_the_dump_is_the_configuration(lm, cases, tmp_path):
    protocol = Protocol(regime="sequential:3", batch=2, retention=True, seed=4, stack_size=8)
    evaluate(lm, Planted(), cases, protocol=protocol, out=tmp_path / "r")
    config = load_run(tmp_path / "r").config
    assert config["protocol"] == protocol.model_dump(mode="json", exclude={"stack_size"})
    assert config["run"]["stack_size"] == 8
    again = settings_from(Protocol, config["protocol"])
    assert again == protocol.model_copy(update={"stack_size": 32})


def test_texts_count_by_content(lm, cases, tmp_path):
    text = "Anna lives in Rome. The river flows through the town of Paris.\n\nDanielle works."
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(text)

    def run(name, **more):
        return evaluate(
            lm, Planted(), cases, regime="sequential:7", perplexity=tmp_path / name,
            out=tmp_path / "r", **more,
        )  # fmt: skip

    first = run("a.txt")
    assert run("b.txt", resume=True).records == first.records
    (tmp_path / "b.txt").write_text(text + " More.")
    with pytest.raises(RunError, match=r"content\.perplexity was"):
        run("b.txt", resume=True)


class TestOldFolders:
    """A run folder as it was written before the protocol was a class."""

    @staticmethod
    def aged(path, suite=None):
        config = json.loads((path / "config.json").read_text())
        own = config["protocol"]
        old = {
            key: own[key]
            for key in ("regime", "top_k", "batch", "drop_partial", "retention",
                        "fluency", "bootstrap", "seed")
        }  # fmt: skip
        config["data"]["keep_collisions"] = own["keep_collisions"]
        old["references"] = config["content"]["references"]
        if own["regime"].startswith("sequential"):
            old |= {"every": own["every"], "perplexity": config["content"]["perplexity"]}
            old["general"] = config["content"]["general"]
        del config["content"]
        config["protocol"] = old
        (path / "config.json").write_text(json.dumps(config))
        lines = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**r, "config_hash": "0ld0ld0ld"}) + "\n" for r in lines[:-2])
        (path / "records.jsonl").write_text(text)

    @pytest.mark.parametrize("regime", ["single", "sequential:3"])
    def test_they_go_on(self, lm, flat, tmp_path, regime):
        def run(**more):
            return evaluate(lm, Planted(), flat, regime=regime, out=tmp_path / "r", **more)

        first = run()
        self.aged(tmp_path / "r")
        with pytest.raises(RunError, match=r"protocol\.top_k was 5, is 2"):
            run(resume=True, top_k=2)
        with pytest.raises(RunError, match=r"protocol\.keep_collisions was False, is True"):
            run(resume=True, keep_collisions=True)
        again = run(resume=True)
        assert again.summary["locality"] == first.summary["locality"]
        # one run, one hash
        assert {record["config_hash"] for record in again.records} == {"0ld0ld0ld"}

    def test_what_a_later_version_wrote_is_refused_by_name(self, lm, flat, tmp_path):
        evaluate(lm, Planted(), flat, out=tmp_path / "r")
        path = tmp_path / "r" / "config.json"
        config = json.loads(path.read_text())
        config["protocol"]["colour"] = "red"
        path.write_text(json.dumps(config))
        with pytest.raises(RunError, match=r"protocol\.colour was 'red', is None"):
            evaluate(lm, Planted(), flat, out=tmp_path / "r", resume=True)

    @pytest.mark.parametrize("part", ["editor", "data", "content", "model", "protocol"])
    @pytest.mark.parametrize("other", ["text", [""], 3])
    def test_an_altered_part_is_refused(self, lm, flat, tmp_path, part, other):
        evaluate(lm, Planted(), flat, out=tmp_path / "r")
        path = tmp_path / "r" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), part: other}))
        with pytest.raises(RunError, match=part):
            evaluate(lm, Planted(), flat, out=tmp_path / "r", resume=True)

    def test_a_suite_of_old_is_the_suite_of_today(self):
        protocol = Protocol(suite="robustness", suite_set={"words": 7})
        new = {"protocol": protocol.section(), "data": {}, "content": {}}
        old_own = {k: v for k, v in new["protocol"].items() if not k.startswith("suite")}
        old = {
            "protocol": {**old_own, "references": None, "perplexity": None},
            "data": {"keep_collisions": False},
            "suite": {"name": "robustness", **protocol.suite_set},
        }
        assert compared(old)["protocol"] == compared(new)["protocol"]


class TestHash:
    def test_it_says_what_is_compared(self, lm, cases, tmp_path):
        def hash_of(**more):
            return evaluate(lm, Planted(), cases[:2], **more).summary["config_hash"]

        plain = hash_of()
        assert hash_of(out=tmp_path / "r") == hash_of(stack_size=1) == plain
        assert len({plain, hash_of(top_k=1), hash_of(bootstrap=3), hash_of(seed=1)}) == 4
        assert config_hash(load_run(tmp_path / "r").config) == plain


@pytest.mark.parametrize("editor", ["rome", "memit"])
def test_missing_texts_are_found_before_a_model_is_loaded(editor):
    made = errata.get_editor(editor, {"moments_text": "nowhere.txt"})
    with pytest.raises(DataError, match=r"no such file: nowhere\.txt"):
        made.ready("any-model")
    errata.get_editor(editor).ready("pocket")  # its text comes with the package


class TestEmptyFolders:
    def test_what_fails_before_the_first_record_leaves_no_folder(self, lm, cases, tmp_path):
        class Unready(Planted):
            def prepare(self, lm):
                raise DataError("no text to count moments on")

        with pytest.raises(DataError):
            evaluate(lm, Unready(), cases, out=tmp_path / "runs" / "r")
        assert not (tmp_path / "runs" / "r").exists()

    def test_a_folder_that_was_there_stays(self, lm, cases, tmp_path):
        class Unready(Planted):
            def prepare(self, lm):
                raise DataError("no text to count moments on")

        evaluate(lm, Planted(), cases[:3], out=tmp_path / "r")
        with pytest.raises(DataError):
            evaluate(lm, Unready(), cases, out=tmp_path / "r", force=True)
        assert (tmp_path / "r" / "config.json").exists()

    def test_failures_of_cases_are_results(self, lm, cases, tmp_path):
        summary = evaluate(lm, Broken(), cases, out=tmp_path / "r").summary
        assert summary["failed"] == len(cases)
        assert len(load_run(tmp_path / "r").records) == len(cases)
