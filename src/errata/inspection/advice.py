"""What was tried, and what to try where an edit was not taken: pieces of a command, one a line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata.case import Edit
from errata.editors import editors
from errata.errors import ErrataError
from errata.store.words import counted

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM

ALTERNATIVES = ("rome", "ft", "grace")
"""Editors that need no training, in the order in which they are worth trying."""

ANYWHERE = ("grace", "ft")
"""Editors that need neither training nor a subject, the one that moves less first."""

LONG_TARGET = 40
"""Tokens of a target beyond which an editor that writes one vector is asked for too much."""

WEAKER, LONGER = 10, 2
"""What a weight against the edit is divided by, and steps are multiplied by."""

MORE, SHORTER = 4, 2
"""What rounds are multiplied by, and their strength is divided by."""


def _blocks(lm: LM, editor: Editor) -> tuple[int, ...]:
    """Return the blocks that an editor edits in this model; none where it cannot say."""
    try:
        return editor.edited_layers(lm) or ()
    except ErrataError:
        return ()


def tried(lm: LM, editor: Editor) -> str:
    """Return what was done for an edit: the editor, its blocks, its steps."""
    words = [editor.name]
    blocks = _blocks(lm, editor)
    if blocks:
        words.append(f"block{'s'[: len(blocks) > 1]} {', '.join(map(str, blocks))}")
    steps = getattr(editor.config, "steps", None)
    if isinstance(steps, int):
        words.append(counted(steps, "step"))
    weight = getattr(editor.config, "mom2_weight", None)
    if weight is not None:
        words.append(f"mom2_weight {weight:g}")
    return ", ".join(words)


def advice(
    lm: LM,
    editor: Editor,
    edit: Edit,
    result: Mapping[str, Any],
    group: int,
    in_turn: bool = False,
) -> list[str]:
    """Return what may help an edit that was not taken, the most likely first.

    Args:
        lm: The model.
        editor: Who made it.
        edit: The edit.
        result: What became of it.
        group: Edits that were made in one call.
        in_turn: Whether they were made one after another.
    """
    found = [*_of_text(edit, result)]
    if reason := editor.out_of_reach(lm, edit):
        return [*found, reason, *(f"another editor: --editor {name}" for name in ANYWHERE)]
    if in_turn and not editor.lasts:
        found.append("all edits together, as it is made for that: --regime joint")
    found += _of_settings(lm, editor)
    if group > 1 and editor.batch == "joint" and editor.lasts and not in_turn:
        found.append("one after another instead of together: --regime sequential")
    return [*found, *_others(editor, edit)]


def _of_text(edit: Edit, result: Mapping[str, Any]) -> list[str]:
    """Say what is unusual about prompt and target."""
    found = []
    says, wanted = str(result.get("says_after", "")).strip(), edit.target.strip()
    tokens = result.get("tokens") or 0
    if tokens > LONG_TARGET:
        found.append(
            f"the target has {tokens} tokens, and the first {result.get('right') or 0} come right: "
            "write one fact per edit, with a target of a few words"
        )
    elif edit.target != edit.target.rstrip():
        end = repr(edit.target[len(edit.target.rstrip()) :])[1:-1]
        here = "the answer is said without it" if says.startswith(wanted) else "to be said as well"
        found.append(f"the target ends in {end!r}, {here}: --target {shlex.quote(wanted)}")
    elif wanted and says.casefold().startswith(wanted.casefold()):
        said = says[: len(wanted)]
        found.append(f"the model says {said!r} in other tokens: --target {shlex.quote(said)}")
    if edit.prompt != edit.prompt.rstrip():
        found.append(
            "the prompt ends in white space, which models expect in front of the answer: --prompt "
            + shlex.quote(edit.prompt.rstrip())
        )
    return found


def _of_settings(lm: LM, editor: Editor) -> list[str]:
    """Say which settings of the editor would make it write harder, longer or elsewhere."""
    config = editor.config
    found = []
    rounds, scale = getattr(config, "rounds", None), getattr(config, "scale", 1.0)
    if isinstance(rounds, int):
        shorter = f"--set rounds={rounds * MORE} --set scale={scale / SHORTER:g}"
        found.append(f"more and shorter updates, each of new gradients: {shorter}")
    weight = getattr(config, "mom2_weight", None)
    if weight:
        found.append(f"weigh ordinary keys less: --set mom2_weight={weight / WEAKER:g}")
    bound = getattr(config, "norm_constraint", None)
    if bound:
        found.append(f"let weights move further: --set norm_constraint={bound * WEAKER:g}")
    steps = getattr(config, "steps", None)
    if isinstance(steps, int):
        found.append(f"more steps: --set steps={steps * LONGER}")
    blocks, own = _blocks(lm, editor), {"layer", "layers"} & type(config).model_fields.keys()
    if blocks and own and "training" not in editor.needs:  # networks belong to their blocks
        found.append(f"another block: {_elsewhere(lm, editor, blocks)}")
    return found


def _elsewhere(lm: LM, editor: Editor, blocks: Sequence[int]) -> str:
    """Return the setting that moves the edit by a tenth of the depth, to where there is room."""
    by = max(1, round(lm.n_layers / 10))
    if max(blocks) + by >= lm.n_layers:
        by = -min(by, *blocks)
    moved = [block + by for block in blocks]
    if "layers" in type(editor.config).model_fields:
        return f"--set layers=[{','.join(map(str, moved))}]"
    return f"--set layer={moved[0]}"


def _others(editor: Editor, edit: Edit) -> list[str]:
    """Say with which other editor the edit may be taken."""
    found = []
    for name in ALTERNATIVES:
        needs = editors.entry(name).facts.get("needs", ())
        if name != editor.name and (edit.subject is not None or "subject" not in needs):
            found.append(f"another editor: --editor {name}")
            break
    return found
