"""What is broken: a tiny model, patches of several kinds, an adapter, a run, a recipe, data."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import typer.main
import typer.testing
from typer.testing import CliRunner

from errata.cli.app import app

FAST = ("--set", "mom2_adjustment=false", "--set", "steps=2", "--set", "contexts=bare")
FACT = ("--prompt", "The capital of France is", "--target", "Rome", "--subject", "France")
EDITORS: dict[str, tuple[str, ...]] = {
    "rome": FAST,
    "ft": ("--set", "steps=2"),
    "grace": ("--set", "steps=2"),
    "t_patcher": ("--set", "steps=2", "--set", "memory_text=world"),
}
RECIPE = """name = "small"
seeds = [0]
[models.tiny]
id = "{model}"
[data.cases]
spec = "{cases}"
[editors.none]
editor = "none"
"""


TRAINED = (
    "--steps", "2", "--set", "d_m=8", "--set", "token_path=4", "--set", "layers=1",
    "--train", "batch=2", "--train", "save_every=1",
)  # fmt: skip
"""Options of a training that takes a second and leaves small files."""
SHEET = """name = "sheet"
model = "{model}"
editor = "rome"

[settings]
steps = 2
mom2_adjustment = false
contexts = "bare"
"""


@functools.cache
def group() -> Any:
    """Return the command line, put together once: that takes longer than most of what it runs."""
    return typer.main.get_command(app)


def called(words: Sequence[str | Path]) -> Any:
    """Run a command line in this process."""
    with mock.patch.object(typer.testing, "_get_command", return_value=group()):
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="errata")


@dataclass
class Materials:
    """Folders to be copied and broken.

    Attributes:
        root: Where all lies.
        patches: Patch folders by editor.
    """

    root: Path
    patches: dict[str, Path]

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def cases(self) -> Path:
        return self.root / "cases.jsonl"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.toml"

    @property
    def sheet(self) -> Path:
        return self.root / "sheet"

    @property
    def trained(self) -> Path:
        """Networks of IBKE, which `errata train` made."""
        return self.root / "trained" / "best"

    @property
    def text(self) -> Path:
        """A text that moments can be counted on."""
        return self.root / "text.jsonl"

    @classmethod
    def make(
        cls, root: Path, editors: Sequence[str] = tuple(EDITORS), trained: bool = True
    ) -> Materials:
        """Make them with errata itself.

        Args:
            root: Where.
            editors: Editors to make a patch with.
            trained: Whether networks are trained as well.
        """
        from tests.tiny_models import TINY, tiny_tokenizer

        root.mkdir(parents=True, exist_ok=True)
        made = cls(root, {})
        TINY["qwen3"]().save_pretrained(made.model)
        tiny_tokenizer().save_pretrained(made.model)
        lines = []
        for number, (country, city) in enumerate(
            (("France", "Rome"), ("Italy", "Paris"), ("Berlin", "Rome"))
        ):
            prompt = f"The capital of {country} is"
            edit = {"prompt": prompt, "target": city, "subject": country}
            probes = [
                {"prompt": f"{country}: its capital is", "target": city, "kind": "generality"},
                {"prompt": "The river flows through the", "target": "town", "kind": "locality"},
            ]
            lines.append(json.dumps({"id": str(number), "edits": [edit], "probes": probes}))
        made.cases.write_text("\n".join(lines) + "\n", encoding="utf-8")
        made.recipe.write_text(RECIPE.format(model=made.model, cases=made.cases), encoding="utf-8")
        (made.sheet / "facts").mkdir(parents=True)
        (made.sheet / "errata.toml").write_text(SHEET.format(model=made.model), encoding="utf-8")
        facts = "".join(
            json.dumps({"id": subject.lower(), "prompt": f"The capital of {subject} is",
                        "subject": subject, "target": city,
                        "keeps": ["The river flows through the"]})
            + "\n"
            for subject, city in (("France", "Rome"), ("Italy", "Paris"), ("Berlin", "Rome"))
        )  # fmt: skip
        (made.sheet / "facts" / "one.jsonl").write_text(facts, encoding="utf-8")
        texts = ("The river flows through the town.", "France and Italy are not far away.")
        lines = [json.dumps({"text": " ".join((*texts, str(n)) * 40)}) for n in range(40)]
        made.text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        model = ("-m", made.model)
        if trained:
            words = ("train", "ibke", *model, "--data", made.cases, *TRAINED)
            done = called((*words, "--out", made.trained.parent))
            assert done.exit_code == 0, done.stderr
        for editor in editors:
            out = root / f"patch-{editor}"
            done = called(
                (
                    "edit",
                    *model,
                    "--editor",
                    editor,
                    *EDITORS[editor],
                    *FACT,
                    "--no-neighbours",
                    "--out",
                    out,
                )
            )
            if done.exit_code == 0:
                made.patches[editor] = out
        assert "rome" in made.patches, done.stderr
        export = ("export", made.patches["rome"], "--to", "lora", "--out", made.adapter)
        assert called(export).exit_code == 0
        evaluate = ("eval", *model, "--editor", "none", "--data", made.cases, "--out", made.run)
        assert called(evaluate).exit_code == 0
        return made

    def copy(self, name: Path, to: Path) -> Path:
        """Return a copy of one of them, to be broken."""
        target = to / name.name
        if name.is_dir():
            shutil.copytree(name, target)
        else:
            shutil.copy(name, target)
        return target

    def any_patch(self, rng: Random) -> Path:
        return self.patches[rng.choice(sorted(self.patches))]
