"""What is broken: a tiny model, patches of several kinds, an adapter, a run, a recipe, data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

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


def called(words: Sequence[str | Path]) -> Any:
    """Run a command line in this process."""
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

    @classmethod
    def make(cls, root: Path, editors: Sequence[str] = tuple(EDITORS)) -> Materials:
        """Make them with errata itself."""
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
        model = ("-m", made.model)
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
