"""The benchmark follows UniEdit's schema; its criteria are derived here from structure alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from errata import world as ew
from errata.errors import ConfigError
from errata.world import schema, templates

EDIT = ["h_e", "r_e", "t_e"]
CRITERIA = {"Rep", "MH", "RR", "SER", "SA", "OA", "l-MH", "l-SER", "SS", "RS", "OS", "1-NF"}
ENTITY = {"id": str, "label": str, "description": str, "aliases": list}


@cache
def built(scale: str, split: str) -> dict[str, dict[str, Any]]:
    """A split of the world with seed 0; tests only read it."""
    return ew.benchmark(ew.build_world(scale), split)


def records(world: ew.World, split: str) -> Iterator[dict[str, Any]]:
    for found in built(world.scale, split).values():
        yield from found.values()


def chains(sample: dict[str, Any]) -> list[dict[str, Any]]:
    double = sample["path_type"] == "double"
    return [sample["single_path1"], sample["single_path2"]] if double else [sample]


def hops(sample: dict[str, Any]) -> list[dict[str, Any]]:
    return [hop for chain in chains(sample) for hop in chain["one_hops"]]


def ids(hop: dict[str, Any]) -> set[str]:
    return {hop["head_entity"]["id"], hop["tail_entity"]["value"].get("id", "")}


def criteria(record: dict[str, Any]) -> set[str]:
    """Section by section, the definitions of UniEdit."""
    edit, flags = record["edit"], set()
    sample = record["generality"]["0"]
    steps = [chain["paths"] for chain in chains(sample)]
    flat = [step for path in steps for step in path]
    if sample["path_type"] == "double":
        flags.add("SER")
    elif len(flat) == 1 and flat[0][:4] == [*EDIT, "f"]:
        flags.add("Rep")
    if any(len(path) > 1 for path in steps):
        flags.add("MH")
    if any(step[:4] == ["t_e", "r_e", "h_e", "b"] for step in flat):
        flags.add("RR")
    for hop in hops(sample):
        if hop["path"] == EDIT:
            head, tail = hop["head_entity"], hop["tail_entity"]
            if head["aliases"] and hop["subject"] != head["label"]:
                flags.add("SA")
            item = tail["datatype"] == "wikibase-item"
            if item and tail["value"]["aliases"] and hop["target"] != tail["value"]["label"]:
                flags.add("OA")
    sample = record["locality"]["0"]
    head, prop = edit["head_entity"]["id"], edit["property"]["id"]
    tail = edit["tail_entity"]["value"].get("id")
    if sample["path_type"] == "double":
        flags.add("l-SER")
    if any(len(chain["paths"]) > 1 for chain in chains(sample)):
        flags.add("l-MH")
    for hop in hops(sample):
        same = hop["property"]["id"] == prop
        flags |= {"SS"} if head in ids(hop) else set()
        flags |= {"RS"} if same else set()
        flags |= {"OS"} if tail and tail in ids(hop) else set()
        flags |= {"1-NF"} if same and hop["head_entity"]["id"] == head else set()
    return flags


@pytest.mark.parametrize("scale", ew.SCALES)
@pytest.mark.parametrize("split", ew.SPLITS)
def test_every_criterion_occurs_in_every_split(
    scale: str, split: str, pocket_world: ew.World, small_world: ew.World
) -> None:
    world = pocket_world if scale == "pocket" else small_world
    found = Counter(flag for record in records(world, split) for flag in criteria(record))
    assert set(found) == CRITERIA
    none = sum(not criteria(r) & {"l-MH", "l-SER", "SS", "RS", "OS", "1-NF"}
               for r in records(world, split))  # fmt: skip
    assert none > 0


@pytest.mark.parametrize("split", ew.SPLITS)
def test_records_have_the_schema(split: str, pocket_world: ew.World) -> None:
    for record in records(pocket_world, split):
        assert set(record) == {"edit", "generality", "locality"}
        edit = record["edit"]
        assert {"prompt", "target", "subject"} < set(edit)
        assert edit["subject"].lower() in edit["prompt"].lower()
        check_triple(edit)
        assert set(record["generality"]) == set(record["locality"]) == {"0"}
        for kind in ("generality", "locality"):
            check_sample(record[kind]["0"])
        kinds = {"none", "tail of edit", "head of edit", "property of edit"}
        assert record["locality"]["0"]["loc_type"] in kinds


def check_triple(found: dict[str, Any]) -> None:
    assert {"head_entity", "property", "tail_entity", "single_inverse"} < set(found)
    assert {k: type(v) for k, v in found["head_entity"].items()} == ENTITY
    prop = found["property"]
    assert {k: type(v) for k, v in prop.items()} == {**ENTITY, "single_value": bool}
    tail = found["tail_entity"]
    assert set(tail) == {"order_in_property", "datatype", "value"}
    assert isinstance(found["single_inverse"], bool)
    if tail["datatype"] == "wikibase-item":
        assert {k: type(v) for k, v in tail["value"].items()} == ENTITY
    else:
        assert tail["datatype"] == "quantity"
        assert set(tail["value"]) == {"amount", "unit"}


def check_sample(sample: dict[str, Any]) -> None:
    assert sample["prompt"]
    for chain in chains(sample):
        assert chain["path_type"] == "single"
        assert len(chain["paths"]) == len(chain["one_hops"])
        for number, (step, hop) in enumerate(zip(chain["paths"], chain["one_hops"], strict=True)):
            start, relation, end, way, value = step
            assert way in "fb"
            assert value in "sm"
            last = number == len(chain["paths"]) - 1
            assert value == "s" or last  # several answers only where a chain ends
            forward = [start, relation, end] if way == "f" else [end, relation, start]
            assert hop["path"] == forward
            assert hop["reverse_in_multi_hop"] == (way == "b")
            assert ("reversed" in hop) == (way == "b")
            assert hop["subject"].lower() in hop["prompt"].lower()
            check_triple(hop)
            if not last:
                assert chain["paths"][number + 1][0] == end
    if sample["path_type"] == "double":
        first, second = chains(sample)
        assert first["paths"][-1][2] == second["paths"][-1][2]
        assert sample["target"] in ("Yes", "No")
        assert sample["target"] == ("No" if "differ" in sample["prompt"] or "else" in
                                    sample["prompt"] else "Yes")  # fmt: skip
        assert not sample["prompt"].endswith(templates.YES_NO)


def test_edits_are_counterfactual_and_of_the_right_kind(pocket_world: ew.World) -> None:
    w = pocket_world
    true = {(f.head, f.relation, f.tail) for f in w.facts}
    for split in ew.SPLITS:
        for record in records(w, split):
            edit = record["edit"]
            tail = edit["tail_entity"]["value"].get("id")
            head, prop = edit["head_entity"]["id"], edit["property"]["id"]
            if tail:
                assert (head, prop, tail) not in true
                assert w.entities[tail].type == w.relations[prop].tail_type
                assert w.entities[tail].label == edit["target"]


def test_generality_follows_from_the_edit_and_locality_is_true(pocket_world: ew.World) -> None:
    w = pocket_world
    true = {(f.head, f.relation, f.order): f.tail for f in w.facts}
    for split in ("val", "test", "test_domains"):
        for record in records(w, split):
            edit = key(record["edit"])
            for hop in hops(record["generality"]["0"]):
                if hop["path"] != EDIT:
                    assert true[key(hop)] == hop["tail_entity"]["value"].get("id", true[key(hop)])
                    assert key(hop) != edit
            for hop in hops(record["locality"]["0"]):
                assert key(hop) != edit
                if "id" in hop["tail_entity"]["value"]:
                    assert true[key(hop)] == hop["tail_entity"]["value"]["id"]
            paths = [step[:3] for chain in chains(record["generality"]["0"])
                     for step in chain["paths"]]  # fmt: skip
            assert EDIT in paths or EDIT[::-1] in paths
            assert record["generality"]["0"]["prompt"] != record["edit"]["prompt"]


def key(hop: dict[str, Any]) -> tuple[str, str, int]:
    order = hop["tail_entity"]["order_in_property"]
    return hop["head_entity"]["id"], hop["property"]["id"], order


def test_splits_are_disjoint(pocket_world: ew.World) -> None:
    heads, domains = {}, {}
    for split in ew.SPLITS:
        found = built(pocket_world.scale, split)
        domains[split] = set(found)
        heads[split] = {r["edit"]["head_entity"]["id"] for d in found.values() for r in d.values()}
    for i, one in enumerate(ew.SPLITS):
        for other in ew.SPLITS[i + 1 :]:
            assert not heads[one] & heads[other]
    assert domains["test_domains"] == set(schema.HELD_OUT_DOMAINS)
    assert not domains["test_domains"] & (domains["train"] | domains["val"] | domains["test"])
    facts = {(r["edit"]["head_entity"]["id"], r["edit"]["property"]["id"],
              r["edit"]["tail_entity"]["order_in_property"])
             for r in records(pocket_world, "train")}  # fmt: skip
    assert len(facts) >= 4000


def test_variants_edit_the_same_facts_to_other_objects(small_world: ew.World) -> None:
    once = ew.benchmark(small_world, "train")
    thrice = ew.benchmark(small_world, "train", variants=3)
    for domain, found in once.items():
        for name, record in found.items():
            fact = name.split("-")[0]
            targets = [thrice[domain][f"{fact}-{v}"]["edit"]["target"] for v in range(3)]
            assert thrice[domain][name] == record
            assert len(set(targets)) == 3
    assert ew.benchmark(small_world, "train", seed=1) != once


def test_bad_arguments_are_user_errors(small_world: ew.World) -> None:
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        ew.benchmark(small_world, "dev")
    with pytest.raises(ConfigError, match="variants must be positive"):
        ew.benchmark(small_world, "train", variants=0)


def test_files_are_laid_out_like_uniedits(small_world: ew.World, tmp_path: Path) -> None:
    counts = ew.write_benchmark(small_world, tmp_path)
    for split in ew.SPLITS:
        files = sorted((tmp_path / split).glob("*.json"))
        assert sum(len(json.loads(file.read_text())) for file in files) == counts[split]
        domains = built(small_world.scale, split)
        assert {file.stem for file in files} == {name.replace(" ", "_") for name in domains}
