"""What is run: editors through one long sequence each, on pocket and on a pretrained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from errata.case import Chat


@dataclass(frozen=True)
class Editor:
    """One row of the tables.

    Attributes:
        label: In tables.
        name: Of the editor, as `errata eval --editor` takes it.
        settings: Beside its defaults.
    """

    label: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


BREADTH: Mapping[str, Any] = {
    "batch_size": 10, "shuffle": True, "stop": "eos", "state": "keep", "replay": 20,
}  # fmt: skip
"""Fine-tuning as LocFT does it, carried on from step to step, with earlier edits replayed."""

EDITORS = {
    "none": Editor("unedited", "none"),
    "ultraedit": Editor("UltraEdit", "ultraedit"),
    "ultraedit_plain": Editor(
        "UltraEdit, `lr=2e-3`, no whitening", "ultraedit", {"lr": 2e-3, "whiten": False}
    ),
    "ultraedit_small": Editor(
        "UltraEdit, `lr=2e-4`, no whitening", "ultraedit", {"lr": 2e-4, "whiten": False}
    ),
    "rag": Editor("RAG", "rag", {"threshold": 0.5}),
    "rag_searched": Editor("RAG, `threshold=0.7`", "rag", {"threshold": 0.7}),
    "retrieval": Editor("IBKE-retrieval", "ibke-retrieval"),
    "locft": Editor("FT, breadth-first with replay", "ft", BREADTH),
    "ft": Editor("FT", "ft"),
    "lora": Editor("LoRA", "lora"),
    "alphaedit": Editor("AlphaEdit", "alphaedit"),
    "memoir": Editor("MEMOIR", "memoir"),
    "memit": Editor("MEMIT", "memit"),
    "lyaplock": Editor("MEMIT + LyapLock", "memit+lyaplock"),
    "encore": Editor("MEMIT-seq + ENCORE", "memit_seq+encore"),
    "nas": Editor("AlphaEdit + NAS", "alphaedit+nas"),
    "simie": Editor("ROME + SimIE", "rome+simie"),
    "grace": Editor("GRACE", "grace"),
    "wise": Editor("WISE", "wise"),
}
"""In order of value: what is run first where time is short."""


@dataclass(frozen=True)
class Sequence:
    """One table.

    Attributes:
        title: Its heading.
        about: A sentence below it.
        model: The model.
        data: Of `errata.data.load_cases`; {data} stands for the folder of public files.
        edits: Length of the sequence.
        batch: Edits per step.
        editors: Rows.
        options: Settings of the data set.
        perplexity: Text; {data} as above.
        every: Steps between measurements along the way.
        chat: Whether edits are made, and all is asked, as a user's message in the model's chat.
        ask: Edits that are asked at the end, evenly spread; 0: all.
    """

    title: str
    about: str
    model: str
    data: str
    edits: int
    batch: int
    editors: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    perplexity: str = "auto"
    every: int = 0
    chat: Chat = "off"
    ask: int = 0


COLLIDE = {"collide": "relation"}
"""Questions about a fact that another edit makes false are no locality questions."""

_REAL = ("ultraedit", "rag", "rag_searched", "locft", "lora", "memoir", "alphaedit", "ft")
TEXT = "{data}/text/wikitext2_raw_test.txt"

SEQUENCES = {
    "pocket200": Sequence(
        "pocket: 200 edits, twenty at a time",
        "Facts of the built-in world that no shipped network was trained on (split `test`, the"
        " first 200 of seed 0); perplexity of held-out sentences of the world.",
        "pocket", "world", 200, 20, tuple(e for e in EDITORS if e != "rag_searched"), COLLIDE,
    ),
    "smollm2_300": Sequence(
        "SmolLM2-135M: 300 edits of WikiBigEdit, a hundred at a time",
        "The first 300 records of `wikibigedit_3k.json`; perplexity of WikiText-2.",
        "smollm2", "wikibigedit:{data}/lifelong/wikibigedit_3k.json", 300, 100, _REAL,
        perplexity=TEXT,
    ),
    "smollm2_300_chat": Sequence(
        "SmolLM2-135M: the same 300 edits, made in the model's chat",
        "As above, but every edit is a user's message and the beginning of the answer to it, and"
        " all is asked so, teacher-forced as well.",
        "smollm2", "wikibigedit:{data}/lifelong/wikibigedit_3k.json", 300, 100,
        ("ultraedit", "locft", "alphaedit"), perplexity=TEXT,
        chat="user",
    ),
    "smollm2_3000": Sequence(
        "SmolLM2-135M: 3,000 edits of WikiBigEdit, a hundred at a time",
        "All records of `wikibigedit_3k.json`; perplexity of WikiText-2. UltraEdit was asked all"
        " 3,000 edits at the end, the others 300, evenly spread (`--ask 300`).",
        "smollm2", "wikibigedit:{data}/lifelong/wikibigedit_3k.json", 3000, 100, _REAL,
        perplexity=TEXT, every=5, ask=300,
    ),
    "smollm2_10000": Sequence(
        "SmolLM2-135M: 10,000 edits of CounterFact, a hundred at a time",
        "All records of `counterfact-train.json`, 59 of which ask an earlier prompt for another"
        " answer; perplexity of WikiText-2. 500 edits were asked at the end, evenly spread"
        " (`--ask 500`).",
        "smollm2", "counterfact:{data}/counterfact/counterfact-train.json", 10000, 100,
        ("none", "ultraedit", "rag", "alphaedit", "locft"), perplexity=TEXT, every=20, ask=500,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One evaluation.

    Attributes:
        sequence: Name of the sequence.
        editor: Name of the row.
    """

    sequence: str
    editor: str

    @property
    def name(self) -> str:
        """Name of its result."""
        return f"{self.sequence}-{self.editor}"


def cells() -> list[Cell]:
    """Return all cells, table by table, in order of value."""
    return [Cell(name, editor) for name, about in SEQUENCES.items() for editor in about.editors]
