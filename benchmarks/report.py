"""Write docs/benchmarks.md from benchmarks/results/*.json."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import _common as common

TITLES = {
    "evaluation": "Evaluation",
    "rome_edit": "ROME edits",
    "memit_edit": "MEMIT, a batch",
    "training": "Training steps",
    "training_large": "Training steps on a larger model",
    "trained_edit": "Edits of trained editors",
    "moments": "Second moments",
    "solves": "Solves of several edits",
    "sequences": "Long sequences",
    "memory_editors": "Editors beside the weights",
    "serac_lookup": "Lookup in a memory of edits",
    "retrieval_lookup": "Lookup among updates kept apart",
    "long_runs": "Long runs and large memories",
    "memory": "Peak memory",
    "trained_memory": "Peak memory of a trained editor at GPT2-XL's shape",
    "bf16": "bfloat16 forward passes",
    "savings": "What need not be computed, on a real model",
    "limit": "Distance from the limit, on a real model",
    "against_easyedit": "Against EasyEdit, on a real model",
    "against_easyedit_newer": "Against EasyEdit's AlphaEdit and GRACE, which no release has yet",
    "against_easyedit_rough": "Against EasyEdit, searched with products in bfloat16",
    "startup": "Start-up",
}


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Return the lines of one benchmark as a Markdown table."""
    names = ("model", "what", "ratio", "aim", "against", "from → to", "results", "")
    rows = ["| " + " | ".join(names) + " |", "|---|---|--:|--:|---|--:|---|---|"]
    for item in lines:
        aim = f"{item['aim']:.3g}×" if item["aim"] else ""
        ratio = f"{item['ratio']:.2f}×"
        if item["aim"]:
            ratio = f"**{ratio}**" if item["ratio"] >= item["aim"] else f"{ratio} (missed)"
        rows.append(
            f"| {item['model']} | {item['what']} | {ratio} | {aim} | {item['baseline']} "
            f"| {item['before']:.3g} → {item['after']:.3g} {item['unit']} "
            f"| {item['equal']} | {item['note']} |"
        )
    return rows


def ablation(found: dict[str, dict[str, float]]) -> list[str]:
    """Return what each saving is worth by itself."""
    models = list(found)
    rows = ["", "What each saving is worth (times faster than the plain loop; few steps, so that "
            "the work done once per edit weighs more than in the table above):", ""]  # fmt: skip
    rows += ["| savings | " + " | ".join(models) + " |", "|---|" + "--:|" * len(models)]
    for name in found[models[0]]:
        rows.append(f"| {name} | " + " | ".join(f"{found[m][name]:.2f}" for m in models) + " |")
    return rows


def machine(documents: dict[str, Any]) -> list[str]:
    """Describe what the results were measured on."""
    seen = []
    for document in documents.values():
        m = document["machine"]
        text = (
            f"{m['device']} ({', '.join(m['features'])}), {m['threads']} thread of {m['cores']} "
            f"cores, Python {m['python']}, torch {m['torch']}, transformers {m['transformers']}; "
            f"{m['time']} time, median of the repeats"
        )
        if text not in seen:
            seen.append(text)
    return [f"* {text}" for text in seen]


def main() -> None:
    documents = {}
    for name in TITLES:
        path = common.RESULTS / f"{name}.json"
        if path.is_file():
            documents[name] = json.loads(path.read_text("utf-8"))
    if not documents:
        raise SystemExit("no results yet: run python -m benchmarks --full")
    text = (common.ROOT / "benchmarks" / "notes.md").read_text("utf-8")
    head, *notes = text.split("\n## ")
    by_name = {note.partition("\n")[0].strip(): note.partition("\n")[2].strip() for note in notes}
    out = [head.strip(), "", "## Measured on", "", *machine(documents)]
    for name, document in documents.items():
        out += ["", f"## {TITLES[name]}", "", *table(document["lines"])]
        if document.get("ablation"):
            out += ablation(document["ablation"])
        if name in by_name:
            out += ["", by_name[name]]
    if "general" in by_name:
        out += ["", "## Not measured", "", by_name["general"]]
    (common.ROOT / "docs" / "benchmarks.md").write_text("\n".join(out) + "\n", "utf-8")


if __name__ == "__main__":
    main()
