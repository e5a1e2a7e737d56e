"""UniEdit: criteria flags, hops and collisions, on records of its schema written by hand."""

from __future__ import annotations

import copy
import json

import pytest

from errata.case import Edit
from errata.data import DOMAINS, SECTORS, drop_collisions, load_cases
from errata.errors import ConfigError, DataError


def entity(name, *aliases):
    return {"id": f"Q-{name}", "label": name, "description": "a thing", "aliases": list(aliases)}


def item(name, *aliases):
    return {"order_in_property": 0, "datatype": "wikibase-item", "value": entity(name, *aliases)}


def quantity(amount):
    value = {"amount": amount, "unit": "1"}
    return {"order_in_property": 0, "datatype": "quantity", "value": value}


def relation(name):
    single = {"single_value": True}
    return {"id": f"P-{name}", "label": name, "description": "", "aliases": []} | single


def fact(head, rel, tail, **more):
    """A fact in the form of `edit`; head may be an entity, tail a tail entity."""
    head = entity(head) if isinstance(head, str) else head
    tail = item(tail) if isinstance(tail, str) else tail
    label = tail["value"].get("label", "12")
    return {
        "prompt": f"The {rel} of {head['label']} is",
        "target": label,
        "subject": head["label"],
        "head_entity": head,
        "property": relation(rel),
        "tail_entity": tail,
        "single_inverse": True,
    } | more


def hop(path, *parts, **more):
    return {"path": path.split(), "reverse_in_multi_hop": False} | fact(*parts) | more


def single(paths, hops, prompt="Q", target="A"):
    return {
        "path_type": "single",
        "prompt": prompt,
        "target": target,
        "paths": [path.split() for path in paths],
        "one_hops": hops,
    }


def double(one, two):
    return {
        "path_type": "double",
        "prompt": "Are both the same?",
        "target": "Yes",
        "paths": one["paths"] + two["paths"],
        "single_path1": one,
        "single_path2": two,
    }


EDIT = fact("Peru", "capital", "Lima")
EDIT_HOP = hop("h_e r_e t_e", "Peru", "capital", "Lima")
OTHER = hop("e_0 r_0 e_1", "Chad", "river", "Nile")
REPHRASED = single(["h_e r_e t_e f s"], [EDIT_HOP], "Peru has the capital", "Lima")
UNRELATED = single(["e_0 r_0 e_1 f s"], [OTHER], "The river of Chad is", "Nile")
TWO_HOPS = single(
    ["h_e r_e t_e f s", "t_e r_0 e_0 f m"],
    [EDIT_HOP, hop("t_e r_0 e_0", "Lima", "mayor", "Rosa")],
    "The mayor of the capital of Peru is",
    "Rosa",
)


def record(generality=REPHRASED, locality=UNRELATED, edit=EDIT):
    return {
        "edit": edit,
        "generality": {"0": generality},
        "locality": {"0": locality | {"loc_type": "none"}},
    }


def write(folder, records, domain="chemistry", split="test"):
    path = folder / split / f"{domain}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def load_one(folder, rec, **options):
    write(folder, {"817": rec})
    options = {"drop_collisions": False} | options
    (case,) = load_cases(f"uniedit:{folder}", options=options).cases
    return case


def flags(folder, generality=REPHRASED, locality=UNRELATED, edit=EDIT):
    probes = load_one(folder, record(generality, locality, edit)).probes
    return probes[0].criteria, probes[1].criteria


def test_a_record_becomes_a_case(tmp_path):
    case = load_one(tmp_path, record())
    assert case.id == "chemistry-817"
    assert case.edits == (Edit("The capital of Peru is", "Lima", "Peru", id="chemistry-817"),)
    gen, loc = case.probes
    assert (gen.prompt, gen.target, gen.kind, gen.name) == (
        "Peru has the capital",
        "Lima",
        "generality",
        "uni_gen",
    )
    assert (loc.prompt, loc.target, loc.kind, loc.name) == (
        "The river of Chad is",
        "Nile",
        "locality",
        "uni_loc",
    )
    assert gen.hops == loc.hops == ()
    assert gen.top_k is None
    assert (case.meta["domain"], case.meta["sector"]) == ("chemistry", "natural sciences")
    assert case.meta["relation"] == "P-capital"
    assert case.meta["loc_type"] == ("none",)


# --- generality: six flags ---------------------------------------------------------------------


def test_rep(tmp_path):
    assert flags(tmp_path)[0] == ("Rep",)
    many = single(["h_e r_e t_e f m"], [EDIT_HOP])
    assert flags(tmp_path, many)[0] == ("Rep",)


def test_mh(tmp_path):
    assert flags(tmp_path, TWO_HOPS)[0] == ("MH",)


def test_mh_in_one_of_two_chains(tmp_path):
    assert flags(tmp_path, double(REPHRASED, TWO_HOPS))[0] == ("MH", "SER")


def test_rr(tmp_path):
    reverse = single(["t_e r_e h_e b s"], [EDIT_HOP | {"reverse_in_multi_hop": True}])
    assert flags(tmp_path, reverse)[0] == ("RR",)
    chain = single(["e_0 r_0 t_e f s", "t_e r_e h_e b s"], [OTHER, EDIT_HOP])
    assert flags(tmp_path, chain)[0] == ("MH", "RR")


def test_ser(tmp_path):
    question = double(REPHRASED, single(["e_0 r_0 t_e f s"], [OTHER]))
    assert flags(tmp_path, question)[0] == ("SER",)


def test_sa(tmp_path):
    known = entity("Peru", "Republic of Peru")
    alias = hop("h_e r_e t_e", known, "capital", "Lima", subject="Republic of Peru")
    assert flags(tmp_path, single(["h_e r_e t_e f s"], [alias]))[0] == ("Rep", "SA")
    label = hop("h_e r_e t_e", known, "capital", "Lima")
    assert flags(tmp_path, single(["h_e r_e t_e f s"], [label]))[0] == ("Rep",)
    no_alias = hop("h_e r_e t_e", "Peru", "capital", "Lima", subject="peru")
    assert flags(tmp_path, single(["h_e r_e t_e f s"], [no_alias]))[0] == ("Rep",)


def test_oa(tmp_path):
    tail = item("Lima", "City of Kings")
    alias = hop("h_e r_e t_e", "Peru", "capital", tail, target="City of Kings")
    assert flags(tmp_path, single(["h_e r_e t_e f s"], [alias]))[0] == ("Rep", "OA")
    label = hop("h_e r_e t_e", "Peru", "capital", tail)
    assert flags(tmp_path, single(["h_e r_e t_e f s"], [label]))[0] == ("Rep",)
    value = hop("h_e r_e t_e", "Peru", "area", quantity("+12"), target="twelve")
    assert flags(tmp_path, single(["h_e r_e t_e f s"], [value]))[0] == ("Rep",)


# --- locality: six flags and none --------------------------------------------------------------


def test_unrelated(tmp_path):
    assert flags(tmp_path)[1] == ("W/O",)


def test_locality_mh_and_ser(tmp_path):
    chain = single(["e_0 r_0 e_1 f s", "e_1 r_1 e_2 f s"], [OTHER, OTHER])
    assert flags(tmp_path, locality=chain)[1] == ("MH",)
    assert flags(tmp_path, locality=double(UNRELATED, UNRELATED))[1] == ("SER",)
    assert flags(tmp_path, locality=double(UNRELATED, chain))[1] == ("MH", "SER")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("Peru", "river", "Nile"), ("SS",)),
        (("Chad", "neighbour", "Peru"), ("SS",)),
        (("Chad", "capital", "Bamako"), ("RS",)),
        (("Lima", "mayor", "Rosa"), ("OS",)),
        (("Chad", "twin", "Lima"), ("OS",)),
        (("Peru", "capital", "Cusco"), ("SS", "RS", "1-NF")),
        (("Peru", "port", "Lima"), ("SS", "OS")),
        (("Chad", "area", quantity("+1")), ("W/O",)),
    ],
)
def test_ss_rs_os_and_1_nf(tmp_path, parts, expected):
    question = single(["e_0 r_0 e_1 f s"], [hop("e_0 r_0 e_1", *parts)])
    assert flags(tmp_path, locality=question)[1] == expected


def test_flags_look_into_both_chains(tmp_path):
    near = single(["e_0 r_0 e_1 f s"], [hop("e_0 r_0 e_1", "Chad", "capital", "Bamako")])
    assert flags(tmp_path, locality=double(UNRELATED, near))[1] == ("SER", "RS")


def test_1_nf_needs_both_in_one_hop(tmp_path):
    hops = [hop("e_0 r_0 e_1", "Peru", "x", "a"), hop("e_1 r_1 e_2", "Chad", "capital", "b")]
    question = single(["e_0 r_0 e_1 f s", "e_1 r_1 e_2 f s"], hops)
    assert flags(tmp_path, locality=question)[1] == ("MH", "SS", "RS")


def test_os_needs_an_entity_as_tail(tmp_path):
    edit = fact("Peru", "area", quantity("+12"))
    question = single(["e_0 r_0 e_1 f s"], [hop("e_0 r_0 e_1", "Chad", "size", quantity("+12"))])
    assert flags(tmp_path, locality=question, edit=edit)[1] == ("W/O",)


# --- hops and yes/no ---------------------------------------------------------------------------


def test_hops_besides_the_edit_in_forward_wording(tmp_path):
    back = hop(
        "e_0 r_0 h_e",
        "Quito",
        "partner",
        "Peru",
        reverse_in_multi_hop=True,
        reversed={"prompt": "Peru is a partner of", "target": "Quito"},
    )
    question = double(TWO_HOPS, single(["h_e r_0 e_0 b s"], [back]))
    gen, loc = load_one(tmp_path, record(question, double(UNRELATED, UNRELATED))).probes
    assert gen.hops == (
        Edit("The mayor of Lima is", "Rosa", "Lima"),
        Edit("The partner of Quito is", "Peru", "Quito"),
    )
    for probe in (gen, loc):
        assert probe.prompt == "Are both the same? The answer is (Yes/No):"
        assert probe.top_k == 1
    # the facts of a locality question are never edited
    assert loc.hops == ()


def test_a_subject_is_spelt_as_in_its_prompt(tmp_path):
    edit = fact("Peru", "capital", "Lima", prompt="Peru has its seat in", subject="peru")
    back = hop("h_e r_0 e_0", "iron", "symbol", "Fe", prompt="Iron has the symbol")
    question = single(["h_e r_e t_e f s", "t_e r_0 e_0 f s"], [EDIT_HOP, back])
    case = load_one(tmp_path, record(question, edit=edit))
    assert case.edits[0].subject == "Peru"
    assert case.probes[0].hops[0].subject == "Iron"
    absent = fact("Peru", "capital", "Lima", prompt="Its seat is", subject="Peru")
    assert load_one(tmp_path, record(edit=absent)).edits[0].subject == "Peru"


# --- collisions --------------------------------------------------------------------------------


def locality_of(*parts):
    return single(["e_0 r_0 e_1 f s"], [hop("e_0 r_0 e_1", *parts)])


def kept(folder, *pairs):
    """Load one case per (edit, locality question); say which kept their locality question."""
    write(folder, {str(i): record(locality=loc, edit=edit) for i, (edit, loc) in enumerate(pairs)})
    cases = load_cases(f"uniedit:{folder}").cases
    return [bool(case.of("locality")) for case in cases]


def test_collisions_of_entities_ignore_relation_and_direction(tmp_path):
    far = fact("Chad", "capital", "Bamako")
    same, back = locality_of("Peru", "port", "Lima"), locality_of("Lima", "country", "Peru")
    one_end = locality_of("Peru", "capital", "Cusco")
    assert kept(tmp_path, (EDIT, UNRELATED), (far, same)) == [True, False]
    assert kept(tmp_path, (far, back), (EDIT, UNRELATED)) == [False, True]
    assert kept(tmp_path, (far, one_end), (EDIT, UNRELATED)) == [True, True]
    # a case collides with its own edit too
    assert kept(tmp_path, (EDIT, same)) == [False]


def test_collisions_of_values_need_the_same_relation_and_value(tmp_path):
    edit, far = fact("Peru", "area", quantity("+12")), fact("Chad", "capital", "Bamako")
    same = locality_of("Peru", "area", quantity("+12"))
    other_relation = locality_of("Peru", "depth", quantity("+12"))
    other_value = locality_of("Peru", "area", quantity("+13"))
    other_head = locality_of("Mali", "area", quantity("+12"))
    pairs = [(far, loc) for loc in (same, other_relation, other_value, other_head)]
    assert kept(tmp_path, (edit, UNRELATED), *pairs) == [True, False, True, True, True]


def test_any_hop_of_either_chain_collides(tmp_path):
    question = double(UNRELATED, locality_of("Lima", "country", "Peru"))
    far = fact("Chad", "capital", "Bamako")
    assert kept(tmp_path, (far, question), (EDIT, UNRELATED)) == [False, True]


def test_dropping_is_noted_and_depends_on_what_is_loaded(tmp_path):
    far = fact("Chad", "capital", "Bamako")
    same = locality_of("Peru", "port", "Lima")
    records = {"a": record(locality=same, edit=far), "b": record()}
    write(tmp_path, records)
    spec = f"uniedit:{tmp_path}"
    loaded = load_cases(spec)
    assert loaded.notes == ("1 locality questions left out: they build on a fact that is edited",)
    assert loaded.cases[0].meta["locality_keys"] == ()
    assert loaded.cases[0].of("generality")
    assert load_cases(spec, limit=1).notes == ()
    whole = load_cases(spec, options={"drop_collisions": False}).cases
    assert [len(case.probes) for case in whole] == [2, 2]
    assert drop_collisions(whole) == list(loaded.cases)
    # training episodes stand alone, so nothing is left out there
    write(tmp_path, records, split="train")
    for train in (load_cases(spec, "train"), load_cases(f"{spec}/train")):
        assert train.split == "train"
        assert [len(case.probes) for case in train.cases] == [2, 2]


# --- files -------------------------------------------------------------------------------------


def test_the_25_domains():
    assert len(SECTORS) == 5
    assert len(DOMAINS) == len(set(DOMAINS)) == 25


def test_domains_and_sectors(tmp_path):
    for domain in ("chemistry", "political_science", "psychology", "art"):
        write(tmp_path, {"1": record()}, domain)
    write(tmp_path, {"1": record()}, split="train")
    spec = f"uniedit:{tmp_path}"
    assert [case.id for case in load_cases(spec).cases] == [
        "art-1",
        "chemistry-1",
        "political science-1",
        "psychology-1",
    ]
    assert [case.id for case in load_cases(spec, "test/political_science").cases] == [
        "political science-1"
    ]
    assert [case.id for case in load_cases(f"{spec}/test", "test/social sciences").cases] == [
        "political science-1",
        "psychology-1",
    ]
    assert len(load_cases(f"{spec}/test")) == 4
    assert len(load_cases(f"{spec}/test/art.json")) == 1
    assert len(load_cases(spec, "train")) == 1
    with pytest.raises(ConfigError, match=r"no domain 'chemisty'\nDid you mean 'chemistry'"):
        load_cases(spec, "test/chemisty")
    with pytest.raises(ConfigError, match="is the folder of split 'train'; asked for 'test'"):
        load_cases(f"{spec}/train", "test")
    with pytest.raises(DataError, match=r"no folder 'val'(.|\n)*There are: test, train"):
        load_cases(spec, "val")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.pop("edit"), "'edit' is missing"),
        (lambda r: r["edit"].update(target=" "), "'edit.target' is ' '"),
        (lambda r: r["edit"].pop("property"), "'edit.property.id' is missing"),
        (lambda r: r.update(generality=[]), "'generality' is a list of 0"),
        (lambda r: r["generality"]["0"].update(path_type="x"), "'generality.0.path_type' is 'x'"),
        (lambda r: r["generality"]["0"]["paths"][0].pop(), "'generality.0.paths[0]'"),
        (lambda r: r["locality"]["0"]["paths"][0].insert(3, "q"), "'locality.0.paths[0]'"),
        (
            lambda r: r["locality"]["0"]["paths"][0].__setitem__(3, "x"),
            "'locality.0.paths[0]' is 'e_0 r_0 e_1 x s'",
        ),
        (lambda r: r["generality"]["0"].update(one_hops=[]), "'generality.0.one_hops'"),
        (lambda r: r["generality"]["0"].update(one_hops=[OTHER]), "expected the edit among"),
        (
            lambda r: r["locality"]["0"]["one_hops"][0]["tail_entity"]["value"].pop("id"),
            "'locality.0.one_hops[0].tail_entity.value.id' is missing",
        ),
        (
            lambda r: r["generality"]["0"]["one_hops"][0]["head_entity"].update(aliases="x"),
            "'generality.0.one_hops[0].head_entity.aliases' is 'x'",
        ),
    ],
)
def test_a_broken_record_names_file_record_and_field(tmp_path, change, field):
    bad = copy.deepcopy(record())
    change(bad)
    path = write(tmp_path, {"5": record(), "bad": bad})
    with pytest.raises(DataError) as caught:
        load_cases(f"uniedit:{path}")
    assert f"{path}: record bad: " in caught.value.message
    assert field in caught.value.message
    loaded = load_cases(f"uniedit:{path}", skip_bad=True)
    assert (len(loaded), loaded.skipped) == (1, (caught.value.message,))


def test_repeated_ids_and_other_files(tmp_path):
    path = write(tmp_path, {})
    path.write_text(f'{{"1": {json.dumps(record())}, "1": {{}}}}')
    with pytest.raises(DataError, match="the key '1' occurs twice"):
        load_cases(f"uniedit:{path}")
    path.write_text("[]")
    with pytest.raises(DataError, match="holds a list of 0; expected an object"):
        load_cases(f"uniedit:{path}")


def test_no_network_says_what_to_do_instead(monkeypatch):
    import huggingface_hub

    def fail(*args, **keywords):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DataError, match=r"no route to host\nDownload .* use --data uniedit:PATH"):
        load_cases("uniedit")
    with pytest.raises(ConfigError, match="no split 'tset'"):
        load_cases("uniedit", "tset/chemistry")


def test_a_snapshot_of_the_hub_is_read(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "UniEdit").mkdir()
    write(tmp_path / "UniEdit", {"1": record()}, "physics")
    seen = {}

    def snapshot(repository, **keywords):
        seen.update(keywords, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert [case.id for case in load_cases("uniedit", "test/physics").cases] == ["physics-1"]
    assert seen["repository"] == "qizhou/UniEdit"
    assert seen["repo_type"] == "dataset"


def test_relations_collide_if_asked_to(tmp_path):
    """An invented answer shares no entity with a question about the true one."""
    far = fact("Chad", "capital", "Bamako")
    true = locality_of("Peru", "capital", "Cusco")  # EDIT says another capital of Peru
    write(tmp_path, {"0": record(locality=true, edit=far), "1": record(edit=EDIT)})
    for how, left in (("published", [True, True]), ("relation", [False, True])):
        cases = load_cases(f"uniedit:{tmp_path}", options={"collide": how}).cases
        assert [bool(case.of("locality")) for case in cases] == left
