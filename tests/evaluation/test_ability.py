"""Tasks of general ability that ship with errata: found by name, with data from a folder."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import errata
from errata.errors import ConfigError, DataError, ErrataError
from errata.evaluation import ability
from errata.evaluation.configuration import compared
from errata.evaluation.general import General
from errata.evaluation.protocol import Protocol
from errata.model.lm import LM

harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-evaluation-harness")

PAIR = {"sentence1": "Lyon is old.", "sentence2": "Lyon is a city."}
CHOICES = ["Iron", "Copper", "Gold", "Tin"]
ITEMS = {
    "sst2": [{"sentence": "a fine film", "label": 1}, {"sentence": "dull", "label": 0}],
    "mrpc": [{**PAIR, "label": 0}, {**PAIR, "label": 1}],
    "cola": [{"sentence": "Lyon is old.", "label": 1}, {"sentence": "Old Lyon is.", "label": 0}],
    "rte": [{**PAIR, "label": 1}, {**PAIR, "label": 0}],
    "nli": [{**PAIR, "label": "entailment"}, {**PAIR, "label": "not_entailment"}],
    "mmlu": [{"question": "Which?", "choices": CHOICES, "answer": i} for i in (0, 3)],
    "dialogue": [{"article": "m : Hi.", "options": CHOICES, "answers": a} for a in "BD"],
}


@cache
def loaded() -> LM:
    return errata.load("pocket")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, items in ITEMS.items():
        lines = "".join(json.dumps(item) + "\n" for item in items)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


class TestData:
    def test_where_it_is_looked_for(self, folder, monkeypatch):
        monkeypatch.setenv(ability.VARIABLE, str(folder))
        assert ability._data("sst2", "sst2.jsonl", None) == folder / "sst2.jsonl"
        inner = folder / ability.SUBFOLDER
        inner.mkdir()
        (inner / "sst2.jsonl").write_text("{}\n")
        assert ability._data("sst2", "sst2.jsonl", None) == inner / "sst2.jsonl"
        assert ability._data("sst2", "sst2.jsonl", folder) == folder / "sst2.jsonl"

    def test_a_named_folder_without_it_is_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"sst2 has no data: no such file: .*sst2\.jsonl"):
            ability._data("sst2", "sst2.jsonl", tmp_path)

    def test_fetched_once_balanced_and_kept(self, tmp_path, monkeypatch):
        monkeypatch.delenv(ability.VARIABLE, raising=False)
        monkeypatch.setattr(ability, "cache_root", lambda: tmp_path)
        rows = [{**PAIR, "label": int(i > 2), "idx": i} for i in range(10)]
        asked = []
        monkeypatch.setattr(ability, "_rows", lambda source: asked.append(source.split) or rows)
        path = ability._data("nli", "nli.jsonl", None)
        assert ability._data("nli", "nli.jsonl", None) == path
        items = [json.loads(line) for line in path.read_text().splitlines()]
        assert asked == ["train"]
        assert items == ITEMS["nli"] * 3

    def test_a_hub_that_is_out_of_reach(self, tmp_path, monkeypatch):
        def away(source):
            raise ConnectionError("no route\nto host")

        monkeypatch.delenv(ability.VARIABLE, raising=False)
        monkeypatch.setattr(ability, "cache_root", lambda: tmp_path)
        monkeypatch.setattr(ability, "_rows", away)
        with pytest.raises(DataError, match="cannot be read from the Hub: no route") as error:
            ability._data("mmlu", "mmlu.jsonl", None)
        assert "--general-data DIR, or $ERRATA_DATA" in str(error.value.hint)
        with pytest.raises(DataError, match="the Hub has none for it"):
            ability._data("dialogue", "dialogue.jsonl", None)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "is empty"),
            ("no json", "not a file of JSON lines"),
            ('{"sentence": "x", "label": 1}\n{"sentence": "x"}\n', "line 2 has no field label"),
            ("[1]\n", "line 1 has no field label, sentence"),
        ],
    )
    def test_what_a_task_cannot_ask_is_refused(self, tmp_path, text, said):
        path = tmp_path / "sst2.jsonl"
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            ability._check("sst2", path, {"metadata": {"fields": ["sentence", "label"]}})

    @pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
    def test_a_text_may_hold_what_breaks_lines_elsewhere(self, tmp_path, odd):
        """MMLU has such an item."""
        path = tmp_path / "sst2.jsonl"
        item = {"sentence": f"one{odd}two", "label": 1}
        path.write_text(json.dumps(item, ensure_ascii=False) + "\n", encoding="utf-8")
        ability._check("sst2", path, {"metadata": {"fields": ["sentence", "label"]}})


@pytest.mark.parametrize("name", ability.task_names())
def test_public_data_can_be_read(name: str, shared: Path) -> None:
    config = yaml.safe_load((ability.TASKS / f"{name}.yaml").read_text("utf-8"))
    path = shared / "data" / "ability" / config["dataset_kwargs"]["data_files"]["test"]
    if not path.is_file():
        pytest.skip(f"needs {path.name} of the public data")
    ability._check(name, path, config)


def test_an_item_longer_than_the_context_is_named() -> None:
    lm = loaded()
    assert lm.max_length is not None

    def task(words: int, kind: str = "loglikelihood") -> SimpleNamespace:
        asked = SimpleNamespace(request_type=kind, args=("a " * words, " b"), doc_id=4)
        return SimpleNamespace(instances=[asked], build_all_requests=lambda limit: None)

    ability.check_lengths(lm, {"mine": task(3)}, 10)
    ability.check_lengths(lm, {"mine": task(lm.max_length, "loglikelihood_rolling")}, 10)
    with pytest.raises(DataError, match=rf"mine: item 5 has .* context holds {lm.max_length}"):
        ability.check_lengths(lm, {"mine": task(lm.max_length)}, 10)


def test_one_task_or_several_in_the_protocol() -> None:
    regime = "sequential:2"
    assert Protocol(regime=regime, general="sst2").general == ("sst2",)
    assert Protocol(regime=regime, general=["sst2", Path("x.yaml")]).general == ("sst2", "x.yaml")
    assert Protocol(regime=regime, general=None).general == ()
    with pytest.raises(ConfigError, match="general belongs to sequences"):
        Protocol(general="sst2")
    sections = [
        {"protocol": Protocol(regime=regime, general="sst2", general_data=place).section()}
        for place in (None, "somewhere")
    ]
    assert compared(sections[0]) == compared(sections[1])


@harness
class TestHarness:
    """With lm-evaluation-harness itself, where it is installed."""

    def test_every_task_by_name(self, folder):
        names = ability.task_names()
        assert {"sst2", "mrpc", "cola", "rte", "nli", "mmlu", "dialogue"} <= set(names)
        general = General(loaded(), names, folder)
        found = general.measure(None)
        assert {name.partition("/")[0] for name in found} == set(names)
        assert all(-1 <= value <= 1 for value in found.values())

    def test_an_answer_is_the_likelier_choice(self, folder):
        lm, items = loaded(), ITEMS["sst2"]
        right = 0
        for item in items:
            rows = [
                lm.row(f"Review : {item['sentence']}\nSentiment :", choice)
                for choice in ("negative", "positive")
            ]
            sums = [sum(score.logprobs) for score in lm.score(rows)]
            right += sums.index(max(sums)) == item["label"]
        assert General(lm, "sst2", folder).measure(None)["sst2/acc"] == right / len(items)

    def test_two_tasks_on_one_file_differ(self, folder):
        lm = loaded()
        one, other = (General(lm, name, folder) for name in ("mmlu", "mmlu_cloze"))
        assert one.id != other.id

    @pytest.mark.parametrize(
        ("names", "said"),
        [(["sst"], "unknown task .*'sst'"), (["sst2", "sst2"], "two tasks .* called sst2")],
    )
    def test_names_that_cannot_be(self, folder, names, said):
        with pytest.raises(ErrataError, match=said):
            General(loaded(), names, folder)
