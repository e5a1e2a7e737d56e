"""Erasing a fact: what the model says of somebody unknown, or a refusal, takes its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Conflicts, Cost, Editor, EditorConfig
from errata.editors.fitting import fitted
from errata.errors import ConfigError, EditError
from errata.model.lm import LM
from errata.model.tokens import find_subject
from errata.patch import Patch
from errata.store.digest import seed_of

NAMES = (
    "Velmora Trask", "Quendril Aster", "Ostavian Pell", "Brumhild Cask", "Iskaldor Venn",
    "Thessa Morwyn", "Calder Roake", "Yorindel Fosse", "Marovic Stane", "Elowin Drast",
)  # fmt: skip
"""Names of nobody: what a model says of them is what it says of whom it does not know."""

ENDS = (".", "\n", ",", ";")
"""An answer is taken up to the first of these."""


NAMED = 3
"""Facts that are named in the one line about them."""


class EraseConfig(EditorConfig, Conflicts):
    """Settings of erasing."""

    host: Literal["ft", "rome", "r_rome", "memit", "alphaedit", "emmet", "pmet"] = Field(
        default="ft", description="Editor that writes what takes the fact's place"
    )
    host_settings: tuple[str, ...] = Field(
        default=(), description="Settings of the host, as name=value, else its own for this model"
    )
    instead: Literal["unknown", "refusal"] = Field(
        default="unknown",
        description="What takes its place: what the model says when the subject is somebody "
        "unknown, or `refusal`: a text that says nothing",
    )
    refusal: str = Field(
        default="unknown to me", description="The text, continuing the prompt (refusal)"
    )
    names: int = Field(
        default=5, ge=1, le=len(NAMES), description="Unknown subjects that are asked about"
    )
    tokens: int = Field(default=8, ge=1, description="Tokens of their answers at most")
    seed: int = Field(default=0, ge=0, description="Which names of nobody")


class Erase(Editor):
    """Remove a fact as far as an edit can; no promise of forgetting.

    What is erased is `target_true` of an edit, where it says one, else its `target`: an edit names
    the fact that shall go. Its patches hold what was written: what came is the `target`, and what
    went the `target_true`.
    """

    name = "erase"
    title = "Erase"
    paper = (
        "after Patil et al., Can Sensitive Information Be Deleted From LLMs?, 2023, "
        "arXiv:2309.17410"
    )
    needs = ("subject",)
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = EraseConfig
    config: EraseConfig

    def _host(self, lm: LM) -> Editor:
        """Return the editor that writes, with its own settings for this model."""
        made = lambda: fitted(self._made_host(lm), lm)  # noqa: E731
        return lm.once("the host of erase", made, owner=self)

    def _made_host(self, lm: LM) -> Editor:
        config = self.config
        for setting in config.host_settings:
            if "=" not in setting:
                raise ConfigError(
                    f"host_settings holds {setting!r}; expected name=value",
                    'Example: --set \'host_settings=["layers=5", "steps=10"]\'',
                )
        return get_editor(config.host, overrides=config.host_settings, model=lm.name)

    def edited_layers(self, lm: LM) -> tuple[int, ...] | None:
        """Return the host's blocks."""
        return self._host(lm).edited_layers(lm)

    @property
    def edits_experts(self) -> bool:
        """Whether the host edits single experts of a mixture."""
        return get_editor(self.config.host, overrides=self.config.host_settings).edits_experts

    def prepare(self, lm: LM) -> None:
        """Make what the host needs."""
        self._host(lm).prepare(lm)

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return what the host's results depend on."""
        return self._host(lm).made_of(lm)

    def sources(self, lm: LM) -> dict[str, str]:
        """Return where the host's settings come from."""
        return {**super().sources(lm), **self._host(lm).sources(lm)}

    def cost(self, lm: LM) -> Cost:
        """The host's, and the answers about unknown subjects."""
        host = self._made_host(lm).cost(lm)  # also asked of models that are not there
        return replace(host, passes=host.passes + self.config.names * self.config.tokens)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Let the host write what takes the place of each group's facts."""
        everything = iter(self.meant(lm, [edit for group in groups for edit in group]))
        written = [[next(everything) for _ in group] for group in groups]
        found = self._host(lm).edit_groups(lm, written, before)
        return [
            self.make_patch(lm, patch.changes, new, **_state(patch.state, new))
            for patch, new in zip(found, written, strict=True)
        ]

    def meant(self, lm: LM, edits: Sequence[Edit]) -> list[Edit]:
        """Return what is written instead of facts; the model without any patch is asked, once."""
        known: dict[Edit, Edit] = lm.once("what erase writes", dict, owner=self)
        new = [edit for edit in dict.fromkeys(edits) if edit not in known]
        for edit, target in zip(new, self._instead(lm, new), strict=True):
            known[edit] = replace(edit, target=target, target_true=erased(edit))
            known[known[edit]] = known[edit]
        return [known[edit] for edit in edits]

    def notes(self, lm: LM, edits: Sequence[Edit]) -> list[str]:
        """Say what went and what came, and what that does not promise."""
        pairs = [f"{new.target!r} for {erased(new).strip()!r}" for new in self.meant(lm, edits)]
        named = ", ".join(pairs[:NAMED]) + (" …" if len(pairs) > NAMED else "")
        return [f"To be erased where it was asked: {named}. Other questions may still get at it."]

    def _instead(self, lm: LM, edits: Sequence[Edit]) -> list[str]:
        """Return the texts that take the place of facts."""
        if self.config.instead == "refusal" or not edits:
            return [self.config.refusal] * len(edits)
        asked = [lm.prompt_of(_about(edit, name)) for edit in edits for name in self._names(edit)]
        said = iter(lm.generate(asked, self.config.tokens, stops=ENDS))
        return [
            self._unknown(edit, [next(said) for _ in range(self.config.names)]) for edit in edits
        ]

    def _names(self, edit: Edit) -> list[str]:
        """Return names of nobody, drawn by the edit alone."""
        start = seed_of(f"{self.config.seed}\0{edit.prompt}") % len(NAMES)
        return [NAMES[(start + i) % len(NAMES)] for i in range(self.config.names)]

    def _unknown(self, edit: Edit, said: Sequence[str]) -> str:
        """Return what is said most of unknown subjects, the first of equals.

        Raises:
            EditError: If that is the very answer, or nothing at all.
        """
        old = erased(edit)
        others = [text.strip() for text in said if text.strip() and not _same(text, old)]
        if not others:
            told = "the same" if any(_same(text, old) for text in said) else "nothing"
            raise EditError(
                f"of unknown subjects the model says {told} behind {edit.prompt!r}: nothing can "
                f"take the place of {old!r}",
                "Write a refusal: --set instead=refusal",
                edits=[edit],
            )
        return Counter(others).most_common(1)[0][0]


def erased(edit: Edit) -> str:
    """Return the answer that an edit erases."""
    return edit.target if edit.target_true is None else edit.target_true


def _about(edit: Edit, name: str) -> Edit:
    """Return the edit's question about another subject."""
    assert edit.subject is not None  # `check` has looked
    start, end = find_subject(edit.prompt, edit.subject, edit.subject_at)
    prompt = edit.prompt[:start] + name + edit.prompt[end:]
    return replace(edit, prompt=prompt, subject=name, subject_at="last")


def _same(one: str, other: str) -> bool:
    return one.strip().lower().startswith(other.strip().lower())


def _state(state: Mapping[str, Any], written: Sequence[Edit]) -> dict[str, Any]:
    """Return the host's state, and which text took whose place."""
    return {**state, "erased": [[new.prompt, erased(new), new.target] for new in written]}
