"""What `patch.json` holds, checked field by field: it may come from a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from errata.documents import Document, checked
from errata.errors import PatchError


class _Fact(Document):
    """A fact of the sheet that a patch was built of."""

    id: str
    prompt: str | list[str] = ""
    target: str | None = None
    owner: str | None = None
    reason: str | None = None
    valid_from: str | None = None
    valid_until: str | None = None
    editor: str | None = None


class _Sheet(Document):
    """The sheet that a patch was built of."""

    name: str
    facts: list[_Fact]


class _Meta(Document):
    """Where a patch comes from."""

    model: str | None = None
    fingerprint: str | None = None
    fingerprint_float16: str | None = None
    dtype: str | None = None
    revision: str | None = None
    editor: str | None = None
    made: str | None = None
    errata: str | None = None
    blocks_from: str | None = None
    moments_from: str | None = None
    settings_from: str | None = None
    compute: str | None = None
    config: dict[str, Any] | None = None
    sheet: _Sheet | None = None


class _Edit(Document):
    """A request; what its texts have to be, `Edit` says."""

    target_true: str | None = None
    id: str | None = None
    subject_rephrases: list[str] = Field(default_factory=list)


class _Result(Document):
    """What became of an edit."""

    taken: bool | None = None
    taken_before: bool | None = None
    p_before: float | None = None
    p_after: float | None = None
    tokens: int | None = None
    right: int | None = None
    says: str | None = None
    says_after: str | None = None
    tried: str | None = None
    advice: list[str] = Field(default_factory=list)


class _Earlier(_Result):
    """The same of an edit that is told beside."""

    prompt: str
    target: str
    subject: str | None = None


class _Neighbour(Document):
    """A question beside the edits."""

    prompt: str = ""
    subject: str | None = None
    before: str | None = None
    after: str | None = None
    moved: bool | None = None


class _Sentences(Document):
    """How far general sentences moved."""

    count: int = 0
    kl_mean: float | None = None
    kl_max: float | None = None
    worst: str = ""


class _Aftermath(Document):
    """What else moved."""

    neighbours: list[_Neighbour] = Field(default_factory=list)
    bare: list[_Neighbour] = Field(default_factory=list)
    sentences: _Sentences | None = None
    lost: list[_Earlier] = Field(default_factory=list)
    weaker: list[_Earlier] = Field(default_factory=list)
    left_out: list[_Earlier] = Field(default_factory=list)
    sequence: dict[str, Any] | None = None
    candidates: list[dict[str, Any]] = Field(default_factory=list)


class _Patch(Document):
    """The whole of it; what is missing counts as null."""

    meta: _Meta = Field(default=None, validate_default=True)
    changes: list[dict[str, Any]] = Field(default=None, validate_default=True)
    edits: list[_Edit] = Field(default=None, validate_default=True)
    state: dict[str, Any] = Field(default_factory=dict)
    results: list[_Result | None] | None = None
    aftermath: _Aftermath | None = None


def check_document(document: Mapping[str, Any]) -> None:
    """Refuse a document with a field that is not what it should be.

    Raises:
        PatchError: Names the field, what it is and what was expected.
    """
    checked(_Patch, document, PatchError)
