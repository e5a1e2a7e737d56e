"""What stands behind an answer that is learned: nothing, or a token that ends text or turn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from errata.errors import EditError
from errata.model.chat import stop_ids

if TYPE_CHECKING:
    from errata.case import Edit
    from errata.model.lm import LM
    from errata.model.tokens import Row

Stop = Literal["none", "eos", "turn"]


def ending(lm: LM, row: Row, stop: Stop, edit: Edit) -> Row:
    """Return a row whose target ends in the token that ends the text, or the model's turn.

    Args:
        lm: The model.
        row: A row with a target.
        stop: `none`: the row as it is.
        edit: The edit that it is of, for messages.

    Raises:
        EditError: If the tokenizer has no such token.
    """
    if stop == "none":
        return row
    eos = lm.tokenizer.eos_token_id
    found = eos if isinstance(eos, int) else None
    if stop == "turn":
        found = turn_end(lm)
    if found is None:
        raise EditError(
            f"{lm.name} has no token that ends a {'text' if stop == 'eos' else 'turn'}",
            "Edit with --set stop=none.", edits=[edit],
        )  # fmt: skip
    at = row.positions[-1] + 1
    return replace(
        row,
        ids=(*row.ids, row.labels[-1]),
        positions=(*row.positions, at),
        labels=(*row.labels, found),
    )


def turn_end(lm: LM) -> int | None:
    """Return the token that ends an assistant's turn: the first one its chat template puts there.

    None if the model has no chat template, or its turns end in no token at which it stops.
    """
    if not getattr(lm.tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    told = lm.tokenizer.apply_chat_template(turns, tokenize=False)
    tail = str(told).rpartition("b")[2]
    ids = lm.tokenizer(tail, add_special_tokens=False)["input_ids"]
    ends = stop_ids(lm.tokenizer, lm.model)
    return next((token for token in ids if token in ends), None)
