"""What is kept of a record: its id and its scores, never the data's texts or the model's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from errata.evaluation.wild import squad

Record = Mapping[str, Any]
DIGITS = 5

_OF_RECORD = ("id", "unit", "edits", "patch_bytes", "age", "immediate", "trajectory", "watched")
_OF_QUESTION = ("kind", "name", "k", "score", "top1", "exact", "gold", "prefers", "margin",
                "greedy")  # fmt: skip
_OF_BEFORE = ("prefers", "margin", "greedy")


def compact(record: Record, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what is kept of a record."""
    kept = {key: record[key] for key in _OF_RECORD if key in record}
    kept["error"] = None if record["error"] is None else without_quotes(record["error"])
    kept["seconds"] = record.get("seconds") or {}
    kept["questions"] = [_question(entry, tokenizer) for entry in record["questions"]]
    return rounded(kept)


def _question(entry: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    kept = {key: entry[key] for key in _OF_QUESTION if key in entry}
    kept["tokens"] = len(entry["hits"])
    if "before" in entry:
        kept["before"] = {key: entry["before"][key] for key in _OF_BEFORE}
    if "wild" in entry:
        kept["wild"] = {"score": entry["wild"]["score"]}
        if entry["kind"] != "locality":
            kept["wild"] |= spoken(entry["wild"]["text"], entry["target"], tokenizer)
    if "wild_refused" in entry:
        kept["wild_refused"] = True
    return kept


def spoken(
    said: str, target: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float | int]:  # fmt: skip
    """Return what tells the leaks apart in what a model said by itself.

    Returns:
        `starts`: whether it begins with the answer (up to its length, as published
        rates cut it); `share`: the share of the answer's tokens that stand in their places;
        `words`: how many words it has.
    """
    own, wanted = squad(said), squad(target)
    ids, right = (
        tokenizer(" " + text.strip(), add_special_tokens=False)["input_ids"]
        for text in (said, target)
    )
    hit = sum(a == b for a, b in zip(ids, right, strict=False))
    return {
        "starts": int(own == wanted or own.startswith(f"{wanted} ")),
        "share": hit / max(len(right), 1),
        "words": len(said.split()),
    }


def without_quotes(message: str) -> str:
    """Return an error without what it quotes: that may be the data's text."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "…", message)


def rounded(value: Any) -> Any:
    """Return a JSON value with its numbers to DIGITS digits behind the point."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(own) for own in value]
    return value
