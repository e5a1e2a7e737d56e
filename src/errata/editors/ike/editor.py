"""IKE: the edits are told to the model in front of every question; nothing in it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from errata.case import Edit
from errata.editors.base import Cost, Editor, EditorConfig
from errata.editors.ike.demos import FORMS, Demos, Form, encode, make_demos
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.patch import Context, Patch
from errata.spacing import AUTO, join

VERSION = 1
"""Raised when what a patch says of its context changes."""

Fact = tuple[str, ...]
"""Prompt and target, and what stands between them unless that is `auto`."""


class IkeConfig(EditorConfig):
    """Settings of IKE."""

    form: Literal["uniedit", "easyedit", "bare"] = Field(
        default="uniedit",
        description="Wording: blocks <New Facts> and <Query Answer>; New Fact and Prompt; or the "
        "facts alone, a line each",
    )
    retrieve: Literal["random", "knn"] = Field(
        default="random",
        description="Demonstrations: the same for every edit, drawn by the seed; or those nearest "
        "to the edits",
    )
    demos: str = Field(
        default="auto",
        description="Data set that demonstrations are made of, as --data takes it (its training "
        "split, where it has one); auto: world for pocket, else uniedit",
    )
    demo_count: int = Field(
        default=32, ge=0, description="Most demonstrations; 0: none, and no data is read"
    )
    demo_tokens: int | None = Field(
        default=400,
        ge=0,
        description="No more demonstrations once they hold so many tokens; none: no limit",
    )
    seed: int = Field(
        default=1, ge=0, description="Which records become demonstrations, in which order"
    )
    pool: int | None = Field(
        default=1000, ge=1, description="Records to retrieve from (knn); none: all"
    )
    encoder: str = Field(
        default="auto",
        description="Sentence encoder (knn): a Hub id or folder, or own: the model itself; auto: "
        "own for pocket, else sentence-transformers/all-MiniLM-L6-v2",
    )
    reserve: int = Field(
        default=128, ge=1, description="Positions of the model that are kept free for questions"
    )
    overflow: Literal["refuse", "forget"] = Field(
        default="refuse",
        description="Edits that do not fit behind earlier ones: refuse them, or forget the oldest",
    )


_UNIEDIT: Mapping[str, object] = {"demo_count": 32, "demo_tokens": 400}
_EASYEDIT: Mapping[str, object] = {
    "form": "easyedit",
    "retrieve": "knn",
    "demo_count": 16,
    "demo_tokens": None,
    "pool": 10000,  # about the training part of its CounterFact
}


class Ike(Editor):
    """The edits as text in front of every question, after demonstrations of how to use them."""

    name = "ike"
    title = "IKE"
    paper = (
        "Zheng et al., Can We Edit Factual Knowledge by In-Context Learning?, 2023, "
        "arXiv:2305.12740"
    )
    needs = ()
    weights = False
    batch = "joint"
    sequence = "grows"
    exports = ()
    Config = IkeConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-xl": _EASYEDIT,
        "gpt-j-6b": _EASYEDIT,
        "llama-3-8b": _EASYEDIT,
        "qwen2.5-7b": _EASYEDIT,
        "uniedit-gpt2-xl": _UNIEDIT,
        "uniedit-gpt-j-6b": _UNIEDIT,
        "uniedit-llama-3-8b": _UNIEDIT,
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # found on validation facts of the world; see docs
        "pocket": {"form": "bare", "demo_count": 0, "overflow": "forget"},
    }
    config: IkeConfig

    @property
    def form(self) -> Form:
        """How facts are stated."""
        return FORMS[self.config.form]

    def prepare(self, lm: LM) -> None:
        """Read the demonstrations; for `knn`, load the encoder and embed them."""
        self.demos(lm)

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return a digest of the demonstrations."""
        return {"demonstrations": self.demos(lm).digest}

    def demos(self, lm: LM) -> Demos:
        """Return the demonstrations for this model, making them the first time.

        Raises:
            ConfigError: If there is no such data set.
            DataError: If it cannot be read.
            ModelError: If there is no such encoder.
        """
        return lm.once("demonstrations", lambda: self._made_demos(lm), owner=self)

    def _made_demos(self, lm: LM) -> Demos:
        settings = self.config
        return make_demos(
            lm, self.form, source=settings.demos, retrieve=settings.retrieve,
            count=settings.demo_count, pool=settings.pool, encoder=settings.encoder,
            seed=settings.seed,
        )  # fmt: skip

    # ------------------------------------------------------------------ editing

    def cost(self, lm: LM) -> Cost:
        """Nothing is computed for an edit; questions have demonstrations in front of them.

        These are kept as keys and values, and cost about a third of being read.
        """
        return Cost(passes=0.0, questions=1.0 + 0.3 * self.config.demo_count)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Write each group's facts, and demonstrations near them, as one context."""
        return [self._told(lm, group, patch) for group, patch in zip(groups, before, strict=True)]

    def _told(self, lm: LM, group: Sequence[Edit], patch: Patch) -> Patch:
        """Write the context that states a group's edits and the earlier ones."""
        _, earlier = _earlier(patch)
        facts = {fact[0]: fact for fact in earlier}
        for edit in group:  # told again: the later answer holds, in the later place
            facts.pop(edit.prompt, None)
            own = () if edit.joiner == AUTO else (edit.joiner,)
            facts[edit.prompt] = (edit.prompt, edit.target, *own)
        others = sum(change.tokens for change in _without(patch).changes)
        kept = self._fitting(lm, list(facts.values()), group, others)
        text, ids = self._written(lm, kept, others)
        state = {"version": VERSION, "text": text, "facts": [list(fact) for fact in kept]}
        return self.make_patch(lm, [Context(torch.tensor(ids), text)], group, ike=state)

    def _room(self, lm: LM, others: int) -> int | None:
        """Return how many tokens a context may have behind so many of other contexts."""
        return None if lm.max_length is None else lm.max_length - self.config.reserve - others

    def _stated(self, lm: LM, facts: Sequence[Fact]) -> str:
        text = self.form.state([join(*fact) for fact in facts])
        # a tokenizer that puts a space in front of every text would double it
        own = encode(lm, "a") == encode(lm, " a")
        return text.rstrip(" ") if own else text

    def _fitting(
        self, lm: LM, facts: Sequence[Fact], group: Sequence[Edit], others: int
    ) -> Sequence[Fact]:
        """Return the facts there is room for.

        Raises:
            EditError: If a fact would have to go that may not.
        """
        room = self._room(lm, others)
        if room is None:
            return facts
        full, own = facts, len({edit.prompt for edit in group})
        while len(encode(lm, self._stated(lm, facts))) > room:
            if self.config.overflow == "refuse" or len(facts) <= own:
                need = len(encode(lm, self._stated(lm, full)))
                raise EditError(
                    f"{lm.name} has room for {max(room, 0)} tokens in front of a question of "
                    f"{self.config.reserve}: too few to state all facts",
                    f"{len(full)} facts take {need}. Edit fewer, keep less room "
                    "(--set reserve=N), or: --set overflow=forget (the oldest go)",
                    edits=self._too_much(lm, facts, group, room),
                )
            facts = facts[1:]
        return facts

    def _too_much(
        self, lm: LM, facts: Sequence[Fact], group: Sequence[Edit], room: int
    ) -> tuple[Edit, ...]:
        """Return the last edits of a group: those without which the others fit."""
        edits = list(group)
        while edits and len(encode(lm, self._stated(lm, facts))) > room:
            gone = edits.pop()
            facts = [fact for fact in facts if fact[0] != gone.prompt]
        return tuple(group[len(edits) :])

    def _written(self, lm: LM, facts: Sequence[Fact], others: int) -> tuple[str, tuple[int, ...]]:
        """Return the context's text and tokens: as many demonstrations as fit, then the facts."""
        told, room = self._stated(lm, facts), self._room(lm, others)
        shown = self._shown(lm, facts)
        while True:
            text = "".join(shown) + told
            ids = encode(lm, text)
            if room is None or len(ids) <= room or not shown:
                return text, ids
            # tokens counted block by block, so that few rounds are needed
            excess, size = len(ids) - room, self.demos(lm).size
            while shown and excess > 0:
                excess -= size(lm, shown.pop())

    def _shown(self, lm: LM, facts: Sequence[Fact]) -> list[str]:
        """Return the demonstrations, up to the one that reaches a limit."""
        demos, own = self.demos(lm), self.config
        queries = []
        if own.retrieve == "knn":
            queries = [f"{self.form.state([join(*f)])}{f[0]}\n\n" for f in facts]
        shown: list[str] = []
        total = 0
        for block in demos.near(queries, own.demo_count):
            if own.demo_tokens is not None and total >= own.demo_tokens:
                break
            shown.append(block)
            total += demos.size(lm, block)
        return shown

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the new context in the place of the one it continues, behind all other changes."""
        return _without(before) + added


def _earlier(patch: Patch) -> tuple[Context | None, list[Fact]]:
    """Return the context of an earlier patch that can be continued, and the facts it states.

    Raises:
        PatchError: If it was written by another version, or its context is gone.
    """
    state: Any = patch.state.get("ike")
    if state is None:
        return None, []
    if not isinstance(state, Mapping) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, Mapping) else None
        raise PatchError(
            f"the earlier patch was written by another version of IKE ({found}; this is {VERSION})",
            "Make it again with this version of errata.",
        )
    for change in patch.changes:
        if isinstance(change, Context) and change.text == state["text"]:
            return change, [tuple(fact) for fact in state["facts"]]
    raise PatchError(
        "the earlier patch says which facts IKE stated, but not where: its context is gone",
        "Edit after the patch as it was saved.",
    )


def _without(patch: Patch) -> Patch:
    """Return a patch without the context that is continued; other contexts stay."""
    own, _ = _earlier(patch)
    return replace(patch, changes=tuple(c for c in patch.changes if c is not own))
