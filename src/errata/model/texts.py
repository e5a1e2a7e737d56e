"""From questions to rows: what a model's tokenizer makes of texts, edits and probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from errata.arguments import several
from errata.case import Chat, Edit, Probe, SubjectAt
from errata.model.chat import stop_ids
from errata.model.tokens import Row, encode_row, opening
from errata.spacing import AUTO
from errata.untrusted import check_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompt = str | Edit | Probe | Row
"""What can be asked: a text; an edit or a probe, in its own way; or a row as it is."""


def _place(question: Edit | Probe) -> SubjectAt:
    return question.subject_at if isinstance(question, Edit) else "last"


class Texts:
    """The side of a model that reads texts.

    Attributes:
        model: The model.
        tokenizer: Its fast tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def max_length(self) -> int | None:
        """Number of positions the model has, if its configuration says so."""
        value = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return value if isinstance(value, int) and value > 0 else None

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens at which the model's own text ends."""
        return stop_ids(self.tokenizer, self.model)

    def row(
        self,
        prompt: str,
        target: str | None = None,
        subject: str | None = None,
        *,
        prefix: str = "",
        subject_at: SubjectAt = "last",
        joiner: str = AUTO,
        chat: Chat = "off",
        system: str | None = None,
    ) -> Row:
        """Tokenise one question; see [`errata.model.tokens.encode_row`][]."""
        return encode_row(
            self.tokenizer, prompt, target, subject, prefix=prefix, subject_at=subject_at,
            joiner=joiner, chat=chat, system=system, max_length=self.max_length,
        )  # fmt: skip

    def row_of(
        self,
        question: Edit | Probe,
        target: str | None = None,
        *,
        subject: bool = False,
        prefix: str = "",
    ) -> Row:
        """Tokenise an edit or a probe with its answer, the way it says it is asked.

        Args:
            question: An edit or a probe.
            target: Another answer than its own.
            subject: Whether to look for its subject.
            prefix: Text put before the prompt.

        Raises:
            EditError: If the subject does not occur in the prompt, or the target adds no token.
            ModelError: If the model's context is too short, or it has no such chat template.
        """
        return self.row(
            question.prompt, question.target if target is None else target,
            question.subject if subject else None, prefix=prefix, subject_at=_place(question),
            joiner=question.joiner, chat=question.chat, system=question.system,
        )  # fmt: skip

    def prompt_of(self, question: Edit | Probe, *, subject: bool = False, prefix: str = "") -> Row:
        """Tokenise an edit or a probe without an answer; see `row_of`."""
        # a space at the end of the prompt stays if the answer brings another
        joiner = "" if question.target[0].isspace() else question.joiner
        return self.row(
            question.prompt, None, question.subject if subject else None, prefix=prefix,
            subject_at=_place(question), joiner=joiner, chat=question.chat, system=question.system,
        )  # fmt: skip

    def rows(
        self, prompts: Iterable[Prompt], chat: Chat = "off", system: str | None = None
    ) -> list[Row]:
        """Tokenise prompts; texts as they are asked in `chat`, edits and probes as they say."""
        return [
            prompt
            if isinstance(prompt, Row)
            else self.row(prompt, chat=chat, system=system)
            if isinstance(prompt, str)
            else self.prompt_of(prompt)
            for prompt in several(prompts, "prompts", "a list of texts, edits, probes or rows")
        ]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def text_rows(self, texts: Iterable[str], max_length: int) -> list[Row]:
        """Tokenise plain texts, truncated to `max_length` tokens; empty ones are left out."""
        limit = min(max_length, self.max_length or max_length)
        rows = []
        for text in texts:
            check_text(text)
            own = not opening(self.tokenizer, text)
            ids = self.tokenizer(
                text, truncation=True, max_length=limit, add_special_tokens=own
            )["input_ids"]  # fmt: skip
            if ids:
                rows.append(Row(tuple(ids), (len(ids) - 1,), (), len(ids)))
        return rows
