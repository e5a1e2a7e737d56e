"""What documents of strangers have to look like, and one sentence if they do not."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from errata.errors import ErrataError
from errata.untrusted import Refused, described

M = TypeVar("M", bound=BaseModel)


class Document(BaseModel):
    """Base of what is expected of a document; fields of newer versions are kept, not refused."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


_EXPECTED = {
    "list_type": "a list", "tuple_type": "a list", "dict_type": "an object",
    "model_type": "an object", "string_type": "a text", "int_type": "a whole number",
    "int_from_float": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "none_required": "null", "finite_number": "a finite number",
}  # fmt: skip


def checked(kind: type[M], document: Any, error: type[ErrataError] = Refused) -> M:
    """Return a document as what it has to be.

    Args:
        kind: What is expected.
        document: What was read.
        error: What is raised.

    Raises:
        error: Names the field, what it is and what was expected.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        raise error(_sentence(first)) from None


def _sentence(first: Any) -> str:
    name = ""
    for part in first["loc"]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    name = name or "it"
    if first["type"] == "missing":
        return f"{name} is missing"
    told = _EXPECTED.get(first["type"])
    if told is None:
        return f"{name} is {described(first.get('input'))}: {first['msg']}"
    return f"{name} is {described(first.get('input'))}; expected {told}"
