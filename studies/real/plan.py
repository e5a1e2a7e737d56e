"""The cells of the study: which editor on which data and model, in order of value.

Files are looked for below a folder of data, models below a folder of models; what a cell is called
and what it holds does not depend on where they lie. `{data}` in a setting stands for the former.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

DATA = {
    "counterfact": "counterfact:{data}/counterfact/counterfact-val.json",
    "zsre": "zsre:{data}/zsre/zsre_mend_train-1k.json",
    "qaedit": "qaedit:{data}/lifelong/qaedit_inter_1k.json",
    "mquake": "mquake:{data}/mquake/MQuAKE-CF-3k.json",
    "rep": "rep:{data}/rep/counterfact_para_subject-valid.json",
}
"""Data sets, as `--data` takes them: the first records of each, in the order of its file."""

MODELS = {
    "smollm2": "SmolLM2-135M-Instruct",
    "gemma3": "Gemma 3 270M",
    "qwen05": "Qwen2.5-Coder-0.5B-Instruct",
}
"""Folders of models, and what they are called on the page."""

MOMENTS = {"moments_text": "{data}/text/wikitext2_raw_test.txt"}
"""Moments are counted on WikiText-2 (its test split)."""

PERPLEXITY = "{data}/text/wikipedia-paragraphs.json"
"""Perplexity is measured on another text than moments are counted on."""

CLAMPED = {"clamp": 4.0, "mom2_weight": 1000.0}
"""What MEMIT needs on a small model: the default strength is that published for 6 billion."""

IKE = {"demos": "counterfact:{data}/counterfact/counterfact-train.json"}


@dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        name: Name of its kept result.
        part: Part of the page that shows it.
        editor: Editor, `memit+blue` included.
        settings: Of the editor, where they are not its own for this model.
        model: Key of MODELS.
        data: Key of DATA.
        first: Records in front of its own.
        limit: Number of records.
        protocol: What is asked.
        label: What the page calls it, behind the editor's title.
        dtype: Precision of the model.
        compute: What edits multiply in, in a float32 model.
    """

    name: str
    part: str
    editor: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "smollm2"
    data: str = "counterfact"
    first: int = 0
    limit: int = 100
    protocol: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    dtype: str = "bfloat16"
    compute: str = "float32"

    @property
    def suited(self) -> bool:
        """Whether settings that it does not name are those that suit the model's shape.

        As they are for an editor that is asked for by name; on SmolLM2 tables compare the others.
        """
        return self.model != "smollm2"


WITH_MOMENTS = ("rome", "r_rome", "memit", "emmet", "pmet", "alphaedit")
WILD = {"answers": "wild"}

EDITORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "none": ("none", {}, ""),
    "ft": ("ft", {}, ""),
    "memit": ("memit", {}, ""),
    "memit_clamped": ("memit", CLAMPED, "clamp 4, weight 1,000"),
    "alphaedit": ("alphaedit", {}, ""),
    "rome": ("rome", {}, ""),
    "grace": ("grace", {}, ""),
    "ike": ("ike", IKE, ""),
    "t_patcher": ("t_patcher", {"memory_text": MOMENTS["moments_text"]}, ""),
    "lemoe": ("lemoe", {}, ""),
    "emmet": ("emmet", {}, ""),
    "pmet": ("pmet", {}, ""),
    "r_rome": ("r_rome", {}, ""),
}  # fmt: skip
"""Key -> editor, settings, and how a row with settings is told apart."""


def _cell(key: str, part: str, name: str, **more: Any) -> Cell:
    editor, settings, label = EDITORS[key]
    host = editor.partition("+")[0]
    own = {**(MOMENTS if host in WITH_MOMENTS else {}), **settings}
    return Cell(name, part, editor, own, label=label, **more)


DTYPES = {"smollm2": "bfloat16", "gemma3": "float32", "qwen05": "float32"}
"""Precision of the models edited one record at a time; no table compares rows of two models."""

SPOKEN = 30
"""Records of a row that are also answered freely (WILD): the first ones, the same for every row."""

Block = tuple[int, int, bool]
"""First record, number of records, and whether they are answered freely too."""
FIRST: Block = (0, SPOKEN, True)
REST: Block = (SPOKEN, 70, False)


def single(model: str, data: str, keys: tuple[str, ...], block: Block) -> list[Cell]:
    """Return cells in which each record is edited alone; the page joins the cells of a row."""
    first, limit, wild = block
    return [
        _cell(
            key, "single", f"{model}_{data}_{key}_{first}", model=model, data=data,
            first=first, limit=limit, protocol=WILD if wild else {}, dtype=DTYPES[model],
        )
        for key in keys
    ]  # fmt: skip


SEQUENCE = {"regime": "sequential:200", "batch": 20, "perplexity": PERPLEXITY}
HOSTS: dict[str, dict[str, Any]] = {"alphaedit": {}, "memit": CLAMPED, "pmet": {}}
"""Hosts of BLUE, with what they need on a small model."""


def sequences(model: str = "smollm2") -> list[Cell]:
    """Return the hosts of BLUE with and without it: 200 edits in batches of 20, asked after all."""
    return [
        Cell(
            f"{model}_sequence_{host}{'_blue' if blue else ''}", "sequence",
            f"{host}+blue" if blue else host, {**MOMENTS, **settings}, model=model, limit=200,
            protocol=SEQUENCE,
        )
        for host, settings in HOSTS.items()
        for blue in (False, True)
    ]  # fmt: skip


WORDS = 100
"""Words of long contexts (published: 300); REP trains on as many."""
ROBUST = {"suite": "robustness", "suite_set": {"text": MOMENTS["moments_text"], "words": WORDS}}
REP_HOSTS: dict[str, dict[str, Any]] = {"rome": {}, "memit": CLAMPED, "r_rome": {}, "emmet": {}}


def robustness(first: int, limit: int, model: str = "smollm2") -> list[Cell]:
    """Return the hosts of REP with and without it under the robustness suite."""
    return [
        Cell(
            f"{model}_robust_{host}{'_rep' if rep else ''}_{first}", "robustness",
            f"{host}+rep" if rep else host,
            {**MOMENTS, **settings, **({"rep_words": WORDS} if rep else {})}, model=model,
            data="rep", first=first, limit=limit, protocol=ROBUST,
        )
        for host, settings in REP_HOSTS.items()
        for rep in (False, True)
    ]  # fmt: skip


TASKS = ("sst2", "mrpc", "cola", "rte", "nli", "mmlu", "mmlu_cloze")
"""Tasks of general ability: errata's own task files, 100 items each."""


def ability(sequence: Cell | None, model: str = "smollm2") -> Cell:
    """Return the cell of general ability before any edit (None), or after a sequence."""
    name = f"{model}_sequence_none" if sequence is None else sequence.name
    return Cell(
        name.replace("_sequence_", "_ability_"), "ability",
        "none" if sequence is None else sequence.editor, model=model, data="", limit=len(TASKS),
        protocol={"general": TASKS, "after": None if sequence is None else sequence.name},
    )  # fmt: skip


TRACED = {"data": "known_1000:{data}/facts/known_1000.json", "kinds": ("hidden", "ffn")}
NOISE = {"samples": 4}


def traces(limit: int = 20) -> list[Cell]:
    """Return causal traces of the models, on facts that each knows."""
    return [
        Cell(f"{model}_trace", "trace", "none", NOISE, model, "", limit=limit, protocol=TRACED)
        for model in MODELS
    ]


BLOCKS = {"smollm2": (2, 5, 8, 12, 16), "gemma3": (1, 3, 5, 7, 9), "qwen05": (2, 4, 7, 10, 14)}
"""Blocks at which ROME is tried."""


def blocks(limit: int = 20) -> list[Cell]:
    """Return ROME at one block after another: where editing works best."""
    return [
        Cell(
            f"{model}_block_{layer}", "blocks", "rome", {**MOMENTS, "layer": layer}, model,
            limit=limit, label=f"block {layer}", dtype="float32",
        )
        for model, layers in BLOCKS.items()
        for layer in layers
    ]  # fmt: skip


QUIET = {"memory_text": MOMENTS["moments_text"]}
SEARCHED: dict[str, dict[str, dict[str, Any]]] = {
    "ft": {
        "its defaults": {}, "lr 1e-4": {"lr": 1e-4}, "10 steps": {"steps": 10},
        "norm at most 5e-4": {"norm_constraint": 5e-4}, "block 5": {"layers": [5]},
        "block 12": {"layers": [12]},
    },
    "t_patcher": {
        "its defaults": QUIET, "memory weight 1": {**QUIET, "memory_weight": 1.0},
        "memory weight 10": {**QUIET, "memory_weight": 10.0},
        "fires at the answer": {**QUIET, "fires_at": "answer"},
    },
    "lemoe": {
        "its defaults": {}, "30 steps": {"steps": 30}, "rank 4": {"rank": 4},
        "block 5": {"layer": 5}, "block 15": {"layer": 15},
    },
}  # fmt: skip
"""Settings tried for the editors that take neighbours along."""
HELD_OUT = 1000
"""Records of the file in front of those that settings are searched on: none of them is tested."""


def searches(editor: str, limit: int = 20) -> list[Cell]:
    """Return the settings tried for an editor, on records that no other cell asks."""
    return [
        Cell(
            f"smollm2_search_{editor}_{number}", "search", editor, settings, first=HELD_OUT,
            limit=limit, label=label,
        )
        for number, (label, settings) in enumerate(SEARCHED[editor].items())
    ]  # fmt: skip


ROUNDED = ("memit_clamped", "alphaedit", "rome")
"""Editors that are compared with and without rounded products."""


def rounding(limit: int = 200) -> list[Cell]:
    """Return editors in a float32 model with `--compute float32` and `bfloat16`, on new records."""
    return [
        replace(
            _cell(key, "compute", f"smollm2_compute_{key}_{compute}", first=HELD_OUT + 100),
            limit=limit, dtype="float32", compute=compute, label=compute,
        )
        for key in ROUNDED
        for compute in ("float32", "bfloat16")
    ]  # fmt: skip


def everything() -> list[Cell]:
    """Return all cells, the most valuable first."""
    edited = tuple(key for key in EDITORS if key != "none")
    foremost, others = edited[:6], edited[6:]
    direct = ("ft", "memit_clamped", "alphaedit", "rome", "r_rome")
    by_shape = ("ft", "memit", "alphaedit", "rome", "r_rome")
    beside = ("none", *direct, "grace", "ike")
    blue, rep = sequences(), robustness(0, 20)
    return [
        *single("smollm2", "counterfact", ("none",), (0, 100, True)),
        *single("smollm2", "counterfact", foremost, FIRST),
        blue[0],
        *map(ability, (None, blue[0])),
        blue[1],
        *rep[:2],
        *single("smollm2", "counterfact", others, FIRST),
        ability(blue[1]),
        *traces(),
        *searches("ft"),
        *blue[2:4],
        *single("smollm2", "counterfact", edited, REST),
        *rounding(),
        *single("smollm2", "qaedit", beside, FIRST),
        *single("smollm2", "zsre", beside, FIRST),
        *blocks(),
        *searches("t_patcher"),
        *searches("lemoe"),
        *rep[2:],
        *blue[4:],
        *map(ability, blue[2:]),
        *robustness(20, 20),
        *single("smollm2", "mquake", ("none", *direct), (0, 40, False)),
        *single("gemma3", "counterfact", ("none", *by_shape), FIRST),
        *single("qwen05", "counterfact", ("none", *by_shape), FIRST),
        *single("smollm2", "qaedit", beside, REST),
        *single("smollm2", "zsre", beside, REST),
        *single("gemma3", "counterfact", ("none", *by_shape), REST),
        *single("qwen05", "counterfact", ("none", *by_shape), REST),
    ]
