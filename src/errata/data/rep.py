"""REP's robustness data: CounterFact and zsRE edits with ten rephrased subjects each."""

from __future__ import annotations

from typing import ClassVar

from errata.case import Case, Edit, Probe
from errata.data._base import Dataset
from errata.data._records import Record, freeze
from errata.data.counterfact import SUBJECTS

PROMPTS = "a list of texts or null"


class Rep(Dataset):
    """REP's robustness data: edits with rephrased subjects, prompts and neighbours."""

    name = "rep"
    title = "REP robustness"
    paper = (
        "Yan et al. 2024, Keys to Robust Edits: from Theoretical Insights to Practical Advances,"
        " https://arxiv.org/abs/2410.09338"
    )
    splits = ("valid", "llama2", "mistral", "qwen", "zsre-llama2", "zsre-mistral", "zsre-qwen")
    default = "valid"
    marks = (
        (
            "case_id",
            "target_new",
            "target_true",
            "rephrase_prompt",
            "locality_prompt",
            "subject_rephrase",
        ),
    )
    passed_over = ("rephrase_target",)
    id_field = "case_id"
    # the addresses are literal, so that data sets can be listed without being imported
    published: ClassVar[dict[str, str]] = {
        "valid": "https://raw.githubusercontent.com/ElliottYan/RobustKeyEdit/5c54348820a4e62c6ff14816aa44b5385b0d0589/data/valid.counterfact_para_prompt_para_subject.json",
        "llama2": "https://raw.githubusercontent.com/ElliottYan/RobustKeyEdit/5c54348820a4e62c6ff14816aa44b5385b0d0589/data/test.counterfact_para_prompt_para_subject_llama2-7b.json",
        "mistral": "https://raw.githubusercontent.com/ElliottYan/RobustKeyEdit/5c54348820a4e62c6ff14816aa44b5385b0d0589/data/test.counterfact_para_prompt_para_subject_mistral.json",
        "qwen": "https://raw.githubusercontent.com/ElliottYan/RobustKeyEdit/5c54348820a4e62c6ff14816aa44b5385b0d0589/data/test.counterfact_para_prompt_para_subject_qwen.json",
        "zsre-llama2": "https://raw.githubusercontent.com/ElliottYan/RobustKeyEdit/5c54348820a4e62c6ff14816aa44b5385b0d0589/data/test.zsre_para_prompt_para_subject_llama2-7b.json",
        "zsre-mistral": "https://raw.githubusercontent.com/ElliottYan/RobustKeyEdit/5c54348820a4e62c6ff14816aa44b5385b0d0589/data/test.zsre_para_prompt_para_subject_mistral.json",
        "zsre-qwen": "https://raw.githubusercontent.com/ElliottYan/RobustKeyEdit/5c54348820a4e62c6ff14816aa44b5385b0d0589/data/test.zsre_para_prompt_para_subject_qwen.json",
    }
    names: ClassVar[dict[str, tuple[str, ...]]] = {
        "valid": (
            "counterfact_para_subject-valid.json",
            "valid.counterfact_para_prompt_para_subject.json",
        ),
        "llama2": ("test.counterfact_para_prompt_para_subject_llama2-7b.json",),
        "mistral": ("test.counterfact_para_prompt_para_subject_mistral.json",),
        "qwen": ("test.counterfact_para_prompt_para_subject_qwen.json",),
        "zsre-llama2": ("test.zsre_para_prompt_para_subject_llama2-7b.json",),
        "zsre-mistral": ("test.zsre_para_prompt_para_subject_mistral.json",),
        "zsre-qwen": ("test.zsre_para_prompt_para_subject_qwen.json",),
    }

    def case(self, record: Record, seed: int) -> Case:
        """Map one record.

        All rephrased subjects are in `meta`; the edit holds the first half of them (rounded up),
        from which an editor may learn.
        """
        name = record.identity("case_id")
        prompt, subject = record.text("prompt"), record.text("subject")
        if subject not in prompt:
            raise record.wrong("subject", f"a part of the prompt {prompt!r}", subject)
        new = record.text("target_new")
        probes = [
            Probe(text, new, "generality", "rephrase", subject=subject)
            for text in self._rephrased(record)
        ]
        kept = record.text("locality_ground_truth")
        probes += [
            Probe(text, kept, "locality", "locality")
            for text in record.one_or_more_texts("locality_prompt")
        ]
        forms = record.visible_texts("subject_rephrase", SUBJECTS, 1)
        edit = Edit(
            prompt=prompt,
            target=new,
            subject=subject,
            target_true=record.text("target_true"),
            id=name,
            subject_rephrases=forms[: -(-len(forms) // 2)],
        )
        return Case(name, (edit,), tuple(probes), freeze({"subject_rephrase": forms}))

    def _rephrased(self, record: Record) -> tuple[str, ...]:
        """Return the rephrased prompts; blank ones are left out, as the released code does.

        zsRE's files have none and say null.
        """
        field = "rephrase_prompt"
        value = record.get(field, PROMPTS)
        if value is not None and not isinstance(value, list):
            raise record.wrong(field, PROMPTS, value)
        return record.visible_texts(field, "blank rephrased prompts") if value else ()
