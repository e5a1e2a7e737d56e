"""UniEdit's criteria flags and collision keys, derived from the structure of a record.

A question (`S` in the documentation of the format) follows one chain of steps, or two chains that
end in the same node. A step is coded `[a, r, b, direction, count]`: from `a` through relation `r`
to `b`; direction `f` when `a` is the head of the fact and `b` when it is the tail; count `s` for
one answer, `m` for several. `h_e`, `r_e`, `t_e` stand for head, relation and tail of the edit.
"""

from __future__ import annotations

import json

from errata.data._records import Record

GENERALITY = ("Rep", "MH", "RR", "SER", "SA", "OA")
LOCALITY = ("MH", "SER", "SS", "RS", "OS", "1-NF")
UNRELATED = "W/O"
EDIT_PATH = ("h_e", "r_e", "t_e")
ITEM = "wikibase-item"

Key = tuple[str, ...]


def is_double(question: Record) -> bool:
    """Say whether two chains have to end in the same node (same-entity reasoning).

    Raises:
        DataError: If `path_type` is neither `single` nor `double`.
    """
    kind = question.text("path_type")
    if kind not in ("single", "double"):
        raise question.wrong("path_type", "'single' or 'double'", kind)
    return kind == "double"


def chains(question: Record) -> list[Record]:
    """Return the single chains of a question: itself, or its two."""
    if is_double(question):
        return [question.at("single_path1"), question.at("single_path2")]
    return [question]


def steps(chain: Record) -> tuple[Key, ...]:
    """Return the path codes of one chain.

    Raises:
        DataError: If a code has not five parts, or its direction or count is none.
    """
    found = chain.rows("paths", width=5)
    if not found:
        raise chain.wrong("paths", "at least one step", [])
    for index, (_, _, _, direction, count) in enumerate(found):
        if direction not in ("f", "b") or count not in ("s", "m"):
            raise chain.wrong(
                f"paths[{index}]",
                "[from, relation, to, 'f' or 'b', 's' or 'm']",
                " ".join(found[index]),
            )
    return found


def hop_path(hop: Record) -> Key:
    """Return the three symbols of a one-hop fact."""
    path = hop.get("path", "a list of 3 texts")
    if not isinstance(path, list) or len(path) != 3 or not all(isinstance(p, str) for p in path):
        raise hop.wrong("path", "a list of 3 texts", path)
    return tuple(path)


def hops(question: Record) -> list[Record]:
    """Return all one-hop facts of a question, those of both chains if it has two."""
    return [hop for chain in chains(question) for hop in chain.items("one_hops", at_least=1)]


def generality_flags(question: Record) -> tuple[str, ...]:
    """Return the flags of a generality question, in the order of `GENERALITY`.

    Raises:
        DataError: If the structure is broken, or no hop is the edit itself.
    """
    codes = [steps(chain) for chain in chains(question)]
    double = is_double(question)
    edits = [hop for hop in hops(question) if hop_path(hop) == EDIT_PATH]
    if not edits:
        field = "one_hops" if not double else "single_path1.one_hops and single_path2.one_hops"
        raise question.problem(
            f"field {f'{question.path}.{field}'!r} has no hop with path [h_e, r_e, t_e];"
            " expected the edit among the hops of a generality question"
        )
    flags = {
        "Rep": not double and len(codes[0]) == 1 and codes[0][0][:4] == (*EDIT_PATH, "f"),
        "MH": any(len(chain) >= 2 for chain in codes),
        "RR": any(step[:4] == ("t_e", "r_e", "h_e", "b") for chain in codes for step in chain),
        "SER": double,
        "SA": any(_subject_alias(hop) for hop in edits),
        "OA": _object_alias(edits[0]),
    }
    return tuple(name for name in GENERALITY if flags[name])


def _has_aliases(hop: Record, entity: str) -> bool:
    aliases = hop.get(f"{entity}.aliases", "a list of texts")
    if not isinstance(aliases, list):
        raise hop.wrong(f"{entity}.aliases", "a list of texts", aliases)
    return bool(aliases)


def _subject_alias(hop: Record) -> bool:
    return _has_aliases(hop, "head_entity") and hop.get("subject", "a text") != hop.text(
        "head_entity.label"
    )


def _object_alias(hop: Record) -> bool:
    if hop.text("tail_entity.datatype") != ITEM:
        return False
    return _has_aliases(hop, "tail_entity.value") and hop.text("target") != hop.text(
        "tail_entity.value.label"
    )


def locality_flags(edit: Record, question: Record) -> tuple[str, ...]:
    """Return the flags of a locality question, in the order of `LOCALITY`; `W/O` if none holds."""
    codes = [steps(chain) for chain in chains(question)]
    head, relation, tail = edit.text("head_entity.id"), edit.text("property.id"), item_of(edit)
    facts = [
        (hop.text("head_entity.id"), hop.text("property.id"), item_of(hop))
        for hop in hops(question)
    ]
    flags = {
        "MH": any(len(chain) >= 2 for chain in codes),
        "SER": is_double(question),
        "SS": any(head in (h, t) for h, _, t in facts),
        "RS": any(r == relation for _, r, _ in facts),
        "OS": tail is not None and any(tail in (h, t) for h, _, t in facts),
        "1-NF": any((h, r) == (head, relation) for h, r, _ in facts),
    }
    return tuple(name for name in LOCALITY if flags[name]) or (UNRELATED,)


def item_of(fact: Record) -> str | None:
    """Return the id of a fact's tail if it is an entity, else None."""
    if fact.text("tail_entity.datatype") != ITEM:
        return None
    return fact.text("tail_entity.value.id")


def collision_keys(fact: Record) -> tuple[Key, ...]:
    """Return the keys under which two facts count as the same.

    Between two entities any relation and either direction counts; with a value, head, relation
    and value have to agree.
    """
    head, tail = fact.text("head_entity.id"), item_of(fact)
    if tail is not None:
        return ((head, tail), (tail, head))
    value = json.dumps(fact.get("tail_entity.value"), sort_keys=True, ensure_ascii=False)
    datatype = fact.text("tail_entity.datatype")
    return ((head, fact.text("property.id"), f"{datatype}:{value}"),)


def relation_keys(fact: Record) -> tuple[Key, ...]:
    """Return the keys of `collision_keys`, and one under which head and relation have to agree.

    An edit that invents an answer shares no tail with a question about the true one.
    """
    asked = (fact.text("head_entity.id"), fact.text("property.id"))
    return (*collision_keys(fact), ("relation", *asked))
