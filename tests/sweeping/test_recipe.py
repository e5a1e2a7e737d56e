"""Recipes, and the units that they become."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from errata.cli._options import expand as expand_options
from errata.data import split_part
from errata.errors import ConfigError, MissingExtra
from errata.evaluation import Protocol
from errata.sweeping.check import check
from errata.sweeping.recipe import Recipe, read_recipe, recipe_from
from errata.sweeping.units import as_word, expand
from errata.training.sources import parse_sources
from tests.sweeping.conftest import small

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OUT = Path("/out")


def test_table_two_has_208_cells() -> None:
    recipe = read_recipe(RECIPES / "ibke-table2.toml")
    units = expand(recipe, OUT)
    cells = [unit for unit in units if unit.kind == "eval"]
    trainings = [unit for unit in units if unit.kind == "train"]
    assert len(cells) == len({unit.name for unit in cells}) == 208
    assert len(recipe.editors) == 13
    assert Counter(unit.model for unit in cells) == dict.fromkeys(recipe.models, 52)
    assert Counter(unit.data for unit in cells) == dict.fromkeys(recipe.data, 52)
    # SERAC, MEND, IBKE, and each of them with samples of the other benchmarks
    assert len(trainings) == 6 * 4
    names = {unit.name for unit in trainings}
    trained = [unit for unit in cells if unit.entry.train is not None]
    assert len(trained) == 6 * 4 * 4
    assert all(len(unit.needs) == 1 and set(unit.needs) <= names for unit in trained)


def test_layers_of_table_two() -> None:
    units = {unit.name: unit for unit in expand(read_recipe(RECIPES / "ibke-table2.toml"), OUT)}
    words = units["train/ibke-star/gpt2-xl/seed0"].words
    assert words[:4] == ("train", "ibke", "--model", "openai-community/gpt2-xl")
    assert "layers=[15, 16, 17]" in words
    assert words[words.index("--data") + 1].split(",")[1].endswith("counterfact-train.json:512")
    assert words[words.index("--steps") + 1] == "1000000"
    for model in ("gpt-j", "qwen3-1b7", "qwen3-8b"):
        assert "layers=[6, 7, 8]" in units[f"train/ibke/{model}/seed0"].words
    assert "layer=17" in units["gpt2-xl/rome/zsre/seed0"].words
    assert "float16" in units["gpt-j/none/zsre/seed0"].words
    cell = units["gpt2-xl/ibke-star/zsre/seed0"].words
    assert f"weights={OUT}/trainings/ibke-star/gpt2-xl/seed0" in cell
    assert not any(word.startswith("layers=") for word in cell)


@pytest.mark.parametrize(
    ("name", "cells", "trainings"),
    [
        ("ibke-table2", 208, 24),
        ("table2-pocket", 104, 3),
        ("ibke-ablation", 16, 4),
        ("ibke-ablation-pocket", 8, 4),
        ("ibke-latents", 80, 20),
        ("ibke-latents-pocket", 24, 12),
        ("ibke-domains", 10, 10),
        ("ibke-answers", 3, 2),
        ("ibke-inside-pocket", 3, 2),
        ("table2-smollm2", 39, 6),
        ("rep", 56, 0),
        ("rep-pocket", 8, 0),
        ("blue", 84, 0),
        ("blue-pocket", 12, 0),
        ("ibke-smollm2", 10, 7),
        ("ibke-relations-smollm2", 5, 4),
        ("lifelong-8b", 27, 0),
    ],
)
def test_every_recipe_is_right(name: str, cells: int, trainings: int) -> None:
    recipe = read_recipe(RECIPES / f"{name}.toml")
    assert recipe.name == name
    units = expand(recipe, OUT)
    kinds = Counter(unit.kind for unit in units)
    assert kinds == Counter(eval=cells, train=trainings)
    check(recipe, units, files=False)


def test_no_recipe_is_untested() -> None:
    (mark,) = test_every_recipe_is_right.pytestmark  # type: ignore[attr-defined]
    assert {path.stem for path in RECIPES.glob("*.toml")} == {row[0] for row in mark.args[1]}


def test_the_folder_of_local_data_is_put_in() -> None:
    recipe = read_recipe(RECIPES / "table2-pocket.toml", "/elsewhere")
    assert recipe.data["counterfact"].spec == (
        "counterfact:/elsewhere/counterfact/counterfact-val.json"
    )
    assert recipe.data["world"].spec == "world"
    units = {unit.name: unit for unit in expand(recipe, OUT)}
    words = units["train/ibke-star/pocket/seed0"].words
    assert (
        ",zsre:/elsewhere/zsre/zsre_mend_train-1k.json[:512]," in words[words.index("--data") + 1]
    )
    assert read_recipe(RECIPES / "table2-pocket.toml").data["zsre"].spec.startswith("zsre:data/")


def test_settings_of_editors_name_local_data_too() -> None:
    recipe = read_recipe(RECIPES / "rep.toml", "/elsewhere")
    units = {unit.name: unit for unit in expand(recipe, OUT)}
    words = units["smollm2/rome-rep/counterfact-smollm2/seed0"].words
    assert "moments_text=/elsewhere/text/wikitext2_raw_test.txt" in words
    assert not any("{data}" in word for unit in units.values() for word in unit.words)


def test_a_data_set_may_be_for_some_models_only() -> None:
    units = expand(read_recipe(RECIPES / "rep.toml"), OUT)
    assert {(unit.model, unit.data) for unit in units} == {
        *((model, f"{data}-{model}")
          for model in ("llama2", "mistral", "qwen") for data in ("counterfact", "zsre")),
        ("smollm2", "counterfact-smollm2"),
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"\[data.world\] models: 'gpt3' is not in this recipe"):
        recipe_from(small(data={"world": {"spec": "world", "models": ["gpt3"]}}))


def test_table_two_is_trained_and_tested_on_different_records() -> None:
    recipe = read_recipe(RECIPES / "table2-pocket.toml")
    tested: dict[str, tuple[str, slice | None]] = {}
    for entry in recipe.data.values():
        spec, part = split_part(entry.spec)
        tested[spec] = (spec, part)
    shared = set()
    for row in recipe.editors.values():
        for source in parse_sources(",".join(row.train.data if row.train else ["world"])):
            spec, part = split_part(source.spec)
            if spec not in tested or spec == "world":
                continue  # another file; the world's splits are its own
            other = tested[spec][1]
            assert part is not None
            assert other is not None
            assert set(range(3000)[part]).isdisjoint(range(3000)[other])
            shared.add(source.name)
    assert shared == {"zsre", "mquake"}
    assert recipe.data["world"].split == "test"


def test_pairs_are_editors_too() -> None:
    recipe = recipe_from(small(editors={"a": {"editor": "memit+blue"}}))
    check(recipe, expand(recipe, OUT), files=False)


def test_a_grid_is_one_row_per_combination() -> None:
    row = {
        "editor": "ibke",
        "label": "IBKE",
        "grid": {"settings.l_m": [1, 4], "train.lr": [1e-3], "train.split": ["train/data science"]},
        "train": {"data": ["world"]},
    }
    units = expand(recipe_from(small(editors={"ibke": row})), OUT)
    trainings = [unit for unit in units if unit.kind == "train"]
    assert [unit.row for unit in trainings] == [
        "ibke-l_m=1-lr=0.001-split=train-data-science",
        "ibke-l_m=4-lr=0.001-split=train-data-science",
    ]
    assert trainings[1].label == "IBKE l_m=4 lr=0.001 split=train/data science"
    words = trainings[1].words
    assert {"l_m=4", "lr=0.001", "train/data science"} <= set(words)
    assert words[words.index("lr=0.001") - 1] == "--train"


def test_one_training_for_all_seeds_or_one_for_each() -> None:
    row = {"editor": "ibke", "train": {"data": ["world"]}}
    for choice, count in (("each", 2), ("first", 1)):
        document = small(editors={"ibke": row}, seeds=[3, 5], train_seeds=choice)
        units = expand(recipe_from(document), OUT)
        trainings = [unit for unit in units if unit.kind == "train"]
        cells = [unit for unit in units if unit.kind == "eval"]
        assert len(trainings) == count
        assert "seed=3" in trainings[0].words
        assert cells[1].needs == (trainings[-1].name,)
        assert cells[1].words[cells[1].words.index("--seed") + 1] == "5"


def test_limits_only_make_smaller() -> None:
    document = small(
        data={"world": {"spec": "world", "limit": 10}},
        editors={"ibke": {"editor": "ibke", "train": {"data": ["world"], "steps": 100}}},
    )
    for limit, steps, words in ((5, 50, ("5", "50")), (20, 200, ("10", "100"))):
        training, cell = expand(recipe_from(document), OUT, limit=limit, steps=steps)
        assert cell.words[cell.words.index("--limit") + 1] == words[0]
        assert training.words[training.words.index("--steps") + 1] == words[1]


def test_settings_per_model_win_and_published_ones_are_named() -> None:
    row = {
        "editor": "ft",
        "settings": {"lr": 1e-3, "steps": 5},
        "on": {"b": {"lr": 0.1}},
        "as_published": {"a": "gpt2-xl"},
    }
    document = small(models={"a": {"id": "gpt2-xl"}, "b": {"id": "pocket"}}, editors={"ft": row})
    first, second = expand(recipe_from(document), OUT)
    assert "lr=0.001" in first.words
    assert first.words[first.words.index("--as-published") + 1] == "gpt2-xl"
    assert {"lr=0.1", "steps=5"} <= set(second.words)
    assert "--as-published" not in second.words


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (True, "true"),
        (0.1, "0.1"),
        ([15, 16], "[15, 16]"),
        (("a", "b"), '["a", "b"]'),
        ("adamw", "adamw"),
        ("15", '"15"'),
        ("True", '"True"'),
    ],
)
def test_words_mean_the_value(value: Any, word: str) -> None:
    from errata.config import value_from_text

    assert as_word(value) == word
    back = value_from_text(word)
    assert back == (list(value) if isinstance(value, tuple) else value)


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"hardwear": {}}, "unknown setting 'hardwear'", "Did you mean 'hardware'?"),
    ({"hardware": {"gpu": 1}}, "[hardware]: unknown setting 'gpu'", "'gpus'"),
    ({"models": {}}, "no [models.NAME]", "at least one"),
    ({"models": {"m": {"label": "x"}}}, "[models.m]: 'id' is missing", "a Hub id"),
    ({"models": {"m": {"id": "pocket", "dtyp": "x"}}}, "[models.m]", "'dtype'"),
    ({"models": {"m": {"id": "pocket", "dtype": "half"}}}, "'half'", "dtype"),
    ({"models": {"a/b": {"id": "pocket"}}}, "'a/b' cannot name a folder", "label"),
    ({"data": {"d": {"spec": "wolrd"}}}, "unknown data set 'wolrd'", "'world'"),
    ({"editors": {"e": {"editor": "romme"}}}, "unknown editor 'romme'", "'rome'"),
    ({"editors": {"e": {"editor": "rome", "on": {"poket": {}}}}}, "'poket'", "'pocket'"),
    ({"editors": {"e": {"editor": "rome", "data": ["wolrd"]}}}, "'wolrd'", "'world'"),
    ({"editors": {"e": {"editor": "rome", "sets": {}}}}, "[editors.e]", "'settings'"),
    (
        {"editors": {"e": {"editor": "ibke", "train": {"dat": ["world"]}}}},
        "[editors.e.train]",
        "'data'",
    ),
    ({"editors": {"e": {"editor": "ft", "settings": {"lrr": 1}}}}, "unknown setting 'lrr'", "'lr'"),
    (
        {"editors": {"e": {"editor": "ibke", "train": {"data": ["world"], "options": {"lrr": 1}}}}},
        "unknown setting 'lrr'",
        "'lr'",
    ),
    ({"editors": {"e": {"editor": "rome", "train": {"data": ["world"]}}}}, "nothing to train", ""),
    (
        {"models": {"m": {"id": "gpt2-xl"}}, "editors": {"e": {"editor": "ibke"}}},
        "ibke needs networks trained for m",
        "[editors.e.train]",
    ),
    (
        {"editors": {"e": {"editor": "ft", "grid": {"lr": [1.0]}}}},
        "'lr' names no setting",
        "settings.NAME",
    ),
    ({"editors": {"e": {"editor": "ft", "grid": {"train.lr": [1.0]}}}}, "no training", ""),
    ({"editors": {"e": {"editor": "ft", "edit_settings": {"lr": 1}}}}, "edit_settings", "settings"),
    ({"seeds": [1, 1]}, "a seed stands twice", ""),
    ({"regime": "batches"}, "batches", ""),
    ({"regime": "seqential:9"}, "[protocol]: unknown regime", "'sequential'"),
    ({"protocol": {"topk": 1}}, "[protocol]: unknown setting 'topk'", "'top_k'"),
    ({"protocol": {"seed": 1}}, "[protocol]: unknown setting 'seed'", "seeds = "),
    ({"seed": 1}, "unknown setting 'seed'", "'seeds'"),
    ({"protocol": {"fluency": -1}}, "[protocol]: setting 'fluency' is -1", ""),
    ({"batch": 20}, "[protocol]: batch belongs to sequences", "sequential:100"),
    ({"top_k": 1, "protocol": {"top_k": 5}}, "'top_k' stands in the file and in [protocol]", ""),
    ({"suite": "robustnes"}, "unknown suite 'robustnes'", "robustness"),
    (
        {"data": {"d": {"spec": "world", "protocol": {"fluenzy": 1}}}},
        "[data.d.protocol]: unknown setting 'fluenzy'",
        "'fluency'",
    ),
    (
        {"data": {"d": {"spec": "world", "protocol": {"every": 2}}}},
        "[data.d.protocol]: every belongs to sequences",
        "",
    ),
    ({"data": {"d": {"spec": "zsre:nowhere.json"}}}, "no such file or folder: nowhere.json", ""),
    (
        {"editors": {"e": {"editor": "ibke", "train": {"data": ["world", "zsre:no.json:9"]}}}},
        "no such file or folder: no.json",
        "current folder",
    ),
]


@pytest.mark.parametrize(("sections", "message", "hint"), MISTAKES)
def test_mistakes_are_explained(sections: dict[str, Any], message: str, hint: str) -> None:
    def read() -> None:
        recipe = recipe_from(small(**sections))
        check(recipe, expand(recipe, OUT), files=True)

    with pytest.raises(ConfigError) as caught:
        read()
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_files_of_what_is_finished_are_not_needed(tmp_path: Path) -> None:
    document = small(data={"d": {"spec": "zsre:nowhere.json[3:]"}}, editors={"e": {"editor": "ft"}})
    recipe = recipe_from(document)
    units = expand(recipe, tmp_path)
    with pytest.raises(ConfigError, match=r"no such file or folder: nowhere\.json"):
        check(recipe, units, files=True)
    for unit in units:
        unit.folder.mkdir(parents=True)
        (unit.folder / "summary.json").write_text("{}")
    check(recipe, units, files=True)


def test_what_cells_will_ask_for_has_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.evaluation.ability.find_spec", lambda name: None)
    asked = {"regime": "sequential:4", "general": "world"}
    recipe = recipe_from(small(protocol=asked, editors={"e": {"editor": "ft"}}))
    units = expand(recipe, tmp_path)
    check(recipe, units, files=False)  # a dry run needs nothing
    with pytest.raises(MissingExtra) as caught:
        check(recipe, units, files=True)
    assert "errata[general]" in (caught.value.hint or "")
    for unit in units:
        unit.folder.mkdir(parents=True)
        (unit.folder / "summary.json").write_text("{}")
    check(recipe, units, files=True)


class TestProtocol:
    """A recipe says whatever `errata eval` can be asked."""

    EVERYTHING: ClassVar[dict[str, Any]] = {
        "regime": "sequential:40", "top_k": 1, "batch": 20, "ask": 30,
        "answers": "wild", "judge": "http://localhost:1/v1", "judge_model": "m",
        "form": "qa", "new_tokens": 9, "fluency": 10, "details": True,
        "references": "{data}/snippets.json", "retention": True, "perplexity": "{data}/text.txt",
        "general": ["world", "{data}/task.yaml"], "general_data": "{data}/ability", "every": 2,
        "drop_partial": True, "keep_collisions": True,
        "bootstrap": 50, "stack_size": 8, "suite": "robustness",
        "stop_when": "perplexity=2x",
        "suite_set": {"words": 7, "tests": ["subject", "long"]}, "chat": "system+user",
        "system": "Be brief.",
    }  # fmt: skip

    def words(self, recipe: Recipe) -> tuple[str, ...]:
        (unit,) = expand(recipe, OUT)
        return unit.words

    def test_every_setting_reaches_the_command(self) -> None:
        # similarity belongs to long answers, judges to free ones: see below
        assert self.EVERYTHING.keys() == Protocol.model_fields.keys() - {"seed", "similarity"}
        recipe = recipe_from(small(protocol=self.EVERYTHING), data_dir="/d")
        words = self.words(recipe)
        seen: list[Protocol] = []

        @expand_options
        def command(protocol: Protocol) -> None:
            seen.append(protocol)

        app = typer.Typer(add_completion=False)
        app.command()(command)
        flags = words[words.index("--regime") : words.index("--out")]
        done = CliRunner().invoke(app, list(flags))
        assert done.exit_code == 0, done.output
        expected = {
            **self.EVERYTHING,
            "references": "/d/snippets.json",
            "perplexity": "/d/text.txt",
            "general": ["world", "/d/task.yaml"],
            "general_data": "/d/ability",
        }
        assert seen == [Protocol(**expected)]

    def test_long_answers_reach_the_command(self) -> None:
        own = {"answers": "long", "similarity": "lexical", "new_tokens": 64}
        words = self.words(recipe_from(small(protocol=own)))
        said = {words[i]: words[i + 1] for i in range(len(words) - 1)}
        assert said["--protocol"] == "long"
        assert said["--similarity"] == "lexical"

    def test_names_may_stand_in_the_file_itself(self) -> None:
        table = recipe_from(small(protocol=self.EVERYTHING))
        bare = recipe_from(small(**self.EVERYTHING))
        assert self.words(table) == self.words(bare)

    def test_a_data_set_has_its_own(self) -> None:
        document = small(
            data={
                "a": {"spec": "world"},
                "b": {"spec": "world", "protocol": {"suite": "robustness", "top_k": 1}},
            },
            protocol={"fluency": 5},
        )
        recipe = recipe_from(document)
        assert recipe.protocol_on("a") == Protocol(fluency=5)
        assert recipe.protocol_on("b") == Protocol(fluency=5, suite="robustness", top_k=1)
        first, second = expand(recipe, OUT)
        assert "--suite" not in first.words
        assert second.words[second.words.index("--top-k") + 1] == "1"

    def test_old_recipes_give_the_commands_they_gave(self) -> None:
        """So that sweeps that were begun go on: units are known by their words."""
        words = self.words(recipe_from(small(regime="batch:3", top_k=2)))
        tail = words[words.index("--regime") :]
        assert tail[:6] == ("--regime", "batch:3", "--top-k", "2", "--seed", "0")
        assert tail[6] == "--out"
