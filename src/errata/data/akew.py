"""AKEW: facts as paragraphs, as triples and as triples drawn from paragraphs, in three files."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from errata.case import Case, Edit, Probe
from errata.config import Settings
from errata.data._base import Dataset
from errata.data._records import Record, freeze


class AkewOptions(Settings):
    """What is edited in."""

    edit: Literal["unstructured", "structured", "triplets"] = Field(
        "unstructured",
        description="unstructured: the question is answered by the paragraph; structured: the "
        "prompt by the new object; triplets: those that were drawn from the paragraph",
    )


class Akew(Dataset):
    """AKEW: CounterFact, MQuAKE-CF and changes of Wikidata, each fact with a paragraph about it."""

    name = "akew"
    title = "AKEW"
    paper = (
        "Wu et al. 2024, AKEW: assessing knowledge editing in the wild,"
        " https://arxiv.org/abs/2402.18909"
    )
    splits = ("CounterFact", "MQuAKE-CF", "WikiUpdate")
    default = "CounterFact"
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "CounterFact": ("CounterFact.json", "datasets/CounterFact.json"),
        "MQuAKE-CF": ("MQuAKE-CF.json", "datasets/MQuAKE-CF.json", "akew_mquake_cf.json"),
        "WikiUpdate": ("WikiUpdate.json", "datasets/WikiUpdate.json"),
    }
    marks = (
        (
            "case_id",
            "requested_rewrite",
            "requested_rewrite.fact_new_uns",
            "requested_rewrite.unsfact_triplets_GPT",
            "requested_rewrite.prompt",
        ),
    )
    # ids, the other forms of the same fact, and what MQuAKE and CounterFact have besides
    passed_over = (
        "requested_rewrite.relation_id",
        "requested_rewrite.subject_id",
        "requested_rewrite.fact_new",
        "requested_rewrite.fact_new_uns",
        "requested_rewrite.target_new",
        "requested_rewrite.target_true",
        "requested_rewrite.question",
        "requested_rewrite.prompt_full",
        "requested_rewrite.time_new",
        "requested_rewrite.time_true",
        "requested_rewrite.answer_GPT",
        "requested_rewrite.unsfact_triplets_GPT",
        "pararel_idx",
        "attribute_prompts",
        "generation_prompts",
        "single_hops",
        "new_single_hops",
        "answer",
        "answer_alias",
        "orig",
    )
    id_field = "case_id"
    Options = AkewOptions
    options: AkewOptions

    def case(self, record: Record, seed: int) -> Case:
        """Map one record of any of the three files; a record of MQuAKE may have several edits."""
        name = record.identity("case_id")
        whole = record.peek()  # nothing counts as read by looking whether it is a list
        several = isinstance(whole, dict) and isinstance(whole.get("requested_rewrite"), list)
        rewrites = (
            record.items("requested_rewrite", at_least=1)
            if several
            else [record.at("requested_rewrite")]
        )
        edits: list[Edit] = []
        probes: list[Probe] = []
        for number, rewrite in enumerate(rewrites):
            own = name if len(rewrites) == 1 else f"{name}.{number}"
            edits += self._edits(rewrite, own)
            probes += self._probes(rewrite)
        new, true = _answers(rewrites[0], "new"), _answers(rewrites[0], "true")
        for text in record.texts("paraphrase_prompts", optional=True):
            probes.append(Probe(text, new[0], "generality", "rephrase", answers=new[1:]))
        if record.has("new_answer"):
            aliases = record.texts("new_answer_alias", optional=True)
            probes += [
                Probe(text, record.text("new_answer"), "generality", "multi_hop", answers=aliases)
                for text in record.texts("questions", at_least=1)
            ]
        if true:
            probes += [
                Probe(text, true[0], "locality", "neighborhood")
                for text in record.texts("neighborhood_prompts", optional=True)
            ]
        relation = rewrites[0].optional_text("relation_id")
        meta = {"relation_id": relation} if relation and len(rewrites) == 1 else {}
        return Case(name, tuple(edits), tuple(probes), freeze(meta))

    def _edits(self, rewrite: Record, name: str) -> list[Edit]:
        subject = rewrite.text("subject")
        true = _answers(rewrite, "true")
        if self.options.edit == "triplets":
            return [
                Edit(
                    _spliced(one),
                    one.text("target").strip(),
                    one.text("subject"),
                    None,
                    f"{name}.{n}",
                )
                for n, one in enumerate(rewrite.items("unsfact_triplets_GPT", at_least=1))
            ]
        if self.options.edit == "structured":
            target = _answers(rewrite, "new")[0]
            told = true[0] if true else None
            return [Edit(_spliced(rewrite), target, subject, told, name)]
        asked = next((f for f in ("question", "prompt_full") if rewrite.has(f)), None)
        prompt = _spliced(rewrite) if asked is None else rewrite.text(asked)
        return [Edit(prompt, rewrite.text("fact_new_uns").strip(), subject, None, name)]

    def _probes(self, rewrite: Record) -> list[Probe]:
        """Return the questions about the fact, and about the parts of its paragraph."""
        new = _answers(rewrite, "new")
        if not new:
            raise rewrite.wrong("target_new", "an object with a text `str`", None)
        subject = rewrite.text("subject")
        found = []
        if self.options.edit != "structured":
            found.append(
                Probe(
                    _spliced(rewrite),
                    new[0],
                    "generality",
                    "fact",
                    answers=new[1:],
                    subject=subject,
                )
            )
        if self.options.edit == "unstructured":
            for one in rewrite.items("unsfact_triplets_GPT"):
                found.append(
                    Probe(_spliced(one), one.text("target").strip(), "generality", "part",
                          subject=one.optional_text("subject"))
                )  # fmt: skip
        return found


def _spliced(record: Record) -> str:
    """Return a prompt with its subject; published triples have templates without one as well."""
    prompt = record.text("prompt")
    if "{}" not in prompt:
        return prompt
    return record.splice("prompt", record.text("subject"))


def _answers(rewrite: Record, which: str) -> tuple[str, ...]:
    """Return the new or the true answer with its aliases; none where the record has none."""
    found: dict[str, None] = {}
    for field in (f"target_{which}.str", f"answer_{which}"):
        head = field.partition(".")[0]
        if rewrite.has(head) and isinstance(rewrite.get(head), str):
            found[rewrite.text(head).strip()] = None
        elif rewrite.has(head) and rewrite.has(field):
            found[rewrite.text(field).strip()] = None
    for text in rewrite.texts(f"answer_{which}_alias", optional=True):
        found[text.strip()] = None
    return tuple(found)
