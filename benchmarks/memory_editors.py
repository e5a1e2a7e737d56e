"""Editors beside the weights: many independent edits side by side, against one at a time.

Edits and their questions, the protocol's whole work for a record. The baseline is the same code
with one patch per forward pass; published code applies one edit at a time as well.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _common as common

EDITORS = {"grace": 5.0, "t_patcher": 5.0, "lemoe": 3.0, "serac": 3.0, "ike": 3.0}
"""Names, and the ratio aimed at."""


def main() -> None:
    args = common.options(__doc__, stacked=32)
    from errata.editors import get_editor
    from errata.evaluation import evaluate

    lm = common.build_model(common.POCKET, args)
    cases = common.records(common.POCKET, args.records)
    lines = []
    for name, aim in EDITORS.items():
        editor: Any = get_editor(name, model=args.pocket)
        editor.prepare(lm)

        def run(stacked: int, editor: Any = editor) -> list[Any]:
            found = evaluate(lm, editor, cases, stack_size=stacked)
            return [record["questions"] for record in found.records]

        timed, found = common.interleaved(
            {"one": lambda run=run: run(1), "many": lambda run=run: run(args.stacked)},
            args.repeats, args.device,
        )  # fmt: skip
        lines.append(
            common.line(
                f"{name}: {len(cases)} records edited and asked, {args.stacked} at once",
                common.POCKET, "one record at a time", timed["one"], timed["many"], args.device,
                aim=aim, equal=_differ(found["one"], found["many"]),
            )
        )  # fmt: skip
    common.finish("memory_editors", args, lines)


def _differ(one: list[Any], many: list[Any]) -> str:
    pairs = [(a, b) for x, y in zip(one, many, strict=True) for a, b in zip(x, y, strict=True)]
    return f"{sum(a['score'] != b['score'] for a, b in pairs)} of {len(pairs)} scores differ"


if __name__ == "__main__":
    main()
