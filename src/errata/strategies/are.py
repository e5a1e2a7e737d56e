"""ARE, autoregressive editing: a long answer is written stretch by stretch.

One key and one value hold a few words; a page does not fit behind a single vector. So the answer is
cut into windows of tokens, and each gets a value of its own at the token in front of it: the first
at the question's last token, each further one at the last token of what has been said by then. They
are found in order, with the values of the earlier windows at work, and the host writes them all as
if they were facts of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from errata.case import Edit, subject_starts
from errata.config import Settings
from errata.editors.base_located import LocateEditor
from errata.errors import EditError
from errata.locate.pieces import pieces_of, spans, whole, wholes
from errata.locate.values import Values, values_in_turn
from errata.model.lm import LM
from errata.model.tokens import find_subject
from errata.patch import Patch
from errata.strategies.base import Strategy
from errata.tuning.places import with_end

if TYPE_CHECKING:
    from errata.locate.contexts import Contexts


class AreSettings(Settings):
    """Settings of ARE."""

    are_window: int = Field(default=50, ge=1, description="Tokens of an answer per value, at most")
    are_overlap: int = Field(
        default=0, ge=0, description="Tokens that a window shares with the one before it"
    )
    are_first: Literal["auto", "subject", "prompt"] = Field(
        default="auto",
        description="Where the first window is written: at the subject's last token, or at the "
        "prompt's as published; auto: where the host writes, if it knows the subject that it needs",
    )
    are_stop: Literal["auto", "none", "eos"] = Field(
        default="auto",
        description="eos: the answer ends with the token that ends a text; auto: if it takes "
        "several windows, else as the host has it",
    )

    @model_validator(mode="after")
    def _windows_go_on(self) -> AreSettings:
        if self.are_overlap >= self.are_window:
            raise ValueError(
                f"are_overlap is {self.are_overlap} and are_window {self.are_window}: a window has "
                "to be longer than what it shares with the one before it"
            )
        return self


_PUBLISHED: Mapping[str, object] = {"are_window": 50, "are_first": "prompt", "are_stop": "eos"}


class Are(Strategy):
    """Autoregressive editing of long answers: one value per window of tokens."""

    name = "are"
    title = "ARE"
    paper = (
        "Jiang et al., AnyEdit: Edit Any Knowledge Encoded in Language Models, ICML 2025, "
        "arXiv:2502.05628"
    )
    hosts = ("alphaedit", "memit", "unke")
    spares = ("subject",)
    Settings = AreSettings
    overrides: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
        host: {
            "llama-3-8b": _PUBLISHED,
            "qwen2.5-7b": _PUBLISHED,
            "pocket": {"are_window": 8},  # a narrow model's vector carries less
        }
        for host in hosts
    }

    @property
    def edits_experts(self) -> bool:
        """Which expert a token reaches would have to be known for every window."""
        return False

    def check(self, edit: Edit) -> None:
        """Refuse a subject that is not in its prompt, and its lack where it is asked for."""
        if not self._writes_at_subject(edit):
            return
        if edit.subject is None:
            raise EditError(
                f"{self.name} with are_first=subject needs to know the subject of {edit.prompt!r}",
                'Give it: --subject TEXT, or "subject" in the record; or leave are_first at auto',
            )
        find_subject(edit.prompt, edit.subject, edit.subject_at)

    def notes(self, lm: LM, edits: Sequence[Edit]) -> list[str]:
        """Say what the host says of edits with a subject."""
        return super().notes(lm, [edit for edit in edits if self._writes_at_subject(edit)])

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Cut the answers, and let the host write the pieces of each group together."""
        cut = [[piece for edit in group for piece in self._cut(lm, edit)] for group in groups]
        try:
            return super().edit_groups(lm, cut, before)
        except EditError as error:
            blamed = tuple(dict.fromkeys(whole(edit) for edit in error.edits))
            raise EditError(error.message, error.hint, edits=blamed) from None

    def make_patch(
        self, lm: LM, changes: Sequence, edits: Sequence[Edit], **state: object
    ) -> Patch:
        """Build the patch of one group, for its edits and not for their pieces."""
        return super().make_patch(lm, changes, wholes(edits), **state)

    def values(
        self,
        lm: LM,
        edits: Sequence[Edit],
        contexts: Contexts,
        layer: int,
        patches: Sequence[int],
    ) -> Values:
        """Find the values of pieces, those of each answer in order."""
        host = cast("Any", super())

        def find(some: list[Edit], places: list[int], held: list[Any]) -> Values:
            return host.values(lm, some, contexts, layer, places, held=held)

        return values_in_turn(edits, patches, find)

    def _cut(self, lm: LM, edit: Edit) -> Sequence[Edit]:
        """Return the pieces of an edit; one that a single window holds is left to the host."""
        settings = cast("AreSettings", self.config)
        at_subject = self._writes_at_subject(edit)
        row = lm.row_of(edit)
        several = len(row.labels) > settings.are_window
        host = getattr(self.config, "stop", "none")
        stop = settings.are_stop
        if stop == "auto":
            stop = "eos" if several else host
        if not several and stop == host and at_subject == isinstance(self, LocateEditor):
            return [edit]
        length = len(row.labels)
        if stop == "eos":
            length = len(with_end(lm, row).labels)
        cuts = spans(length, settings.are_window, settings.are_overlap)
        return pieces_of(edit, cuts, ends=stop == "eos", at_subject=at_subject)

    def _writes_at_subject(self, edit: Edit) -> bool:
        """Whether the first window of an edit is written at its subject."""
        first = cast("AreSettings", self.config).are_first
        if first == "auto":
            named = edit.subject is not None and subject_starts(edit.prompt, edit.subject)
            return bool(named) and isinstance(self, LocateEditor)
        return first == "subject"
