"""What a sheet may say, as JSON Schema: editors complete fields with it and mark what is wrong.

```
errata.schema.json   errata.toml               (SheetConfig, Gates of errata.sheets.sheet)
fact.schema.json     one line of facts/*.jsonl (FactLine)
facts.schema.json    facts/*.yaml: a list of such
```

The files that ship are made by `errata sheet schema`, and a test keeps them equal to the models.
What a schema cannot say (a subject that is not in its prompt, an id that occurs twice, answers
that contradict each other) is found where the sheet is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from errata.case import Chat
from errata.config import Settings
from errata.sheets.sheet import Gates, SheetConfig
from errata.store.files import write_together

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SHIPPED = Path(__file__).parent / "schemas"

Visible = Annotated[str, Field(pattern=r"\S")]
"""A text with at least one visible character."""
Day = Annotated[
    str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", json_schema_extra={"format": "date"})
]


class Question(Settings):
    """A question that tells whether a fact does what it should."""

    prompt: Visible = Field(description="The question, ending just before the answer")
    target: Visible | None = Field(
        default=None,
        description="The expected answer; without it that of the fact (holds), or what the "
        "unedited model says (keeps)",
    )
    chat: Chat = Field(default="off", description="Ask it in the model's chat")
    system: Visible | None = Field(
        default=None, description="The system message, with chat = system+user"
    )


class FactLine(Settings):
    """One correction."""

    id: Visible | int = Field(description="Its name; unique in the sheet")
    prompt: Visible | Annotated[list[Visible], Field(min_length=1)] = Field(
        description="The question, ending just before the answer; or several at which it is written"
    )
    subject: Visible | None = Field(
        default=None, description="What the fact is about, as it stands in the prompt"
    )
    target: Visible = Field(description="The answer to write")
    subject_at: Literal["first", "last"] | Annotated[int, Field(ge=1)] = Field(
        default="last", description="Which occurrence of the subject is meant"
    )
    joiner: str = Field(
        default="auto",
        description="What stands between prompt and target; auto: a space where their scripts use "
        "one",
    )
    chat: Chat = Field(default="off", description="The prompt is a user's message in the chat")
    system: Visible | None = Field(
        default=None, description="The system message, with chat = system+user"
    )
    holds: list[Visible | Question] = Field(
        default=[], description="What has to follow: paraphrases, questions in the chat"
    )
    keeps: list[Visible | Question] = Field(default=[], description="What must not move")
    owner: Visible | None = Field(default=None, description="Who answers for it")
    reason: Visible | None = Field(default=None, description="Why it is there")
    valid_from: Day | None = Field(
        default=None, description="First day on which it is true, as 2026-12-31"
    )
    valid_until: Day | None = Field(
        default=None, description="Last day on which it is true, as 2026-12-31"
    )


class SheetFile(SheetConfig):
    """The whole of `errata.toml`."""

    settings: dict[str, Any] = Field(
        default={}, description="Of the editors; each takes those that it has (errata ls editors)"
    )
    gates: Gates = Field(default=Gates(), description="What errata sheet check asks for")


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas by the names of their files."""
    whole = SheetFile.model_json_schema(mode="validation")
    names = {"type": "string", "minLength": 1}
    whole["properties"]["editor"] |= {  # one name stands for a list of one
        "anyOf": [names, {"type": "array", "items": names, "minItems": 1}]
    }
    for key in ("type", "items", "minItems"):
        whole["properties"]["editor"].pop(key, None)
    facts = TypeAdapter(list[FactLine]).json_schema(mode="validation")
    return {
        "errata.schema.json": _headed(whole, "errata.toml of a fact sheet"),
        "fact.schema.json": _headed(
            FactLine.model_json_schema(mode="validation"), "A fact of a fact sheet"
        ),
        "facts.schema.json": _headed(facts, "Facts of a fact sheet"),
    }


def _headed(schema: dict[str, Any], title: str) -> dict[str, Any]:
    return {"$schema": DRAFT, "title": title, **_told(schema)}


def _told(value: Any, named: bool = False) -> Any:
    """Leave out what says nothing: titles that repeat names, tables that may hold anything.

    Args:
        value: A part of a schema.
        named: Whether its keys are names of fields, which may be called anything.
    """
    if isinstance(value, list):
        return [_told(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # releases of pydantic write 1 and 1.0
    if not isinstance(value, dict):
        return value
    return {
        key: _told(part, key in ("properties", "$defs"))
        for key, part in value.items()
        if named or not (key == "title" or (key == "additionalProperties" and part is True))
    }


def write_schemas(folder: str | Path) -> list[Path]:
    """Write the schemas to a folder; what was there of these names is replaced.

    Raises:
        ErrataError: If they cannot be written.
    """
    files = {Path(folder) / name: text_of(schema).encode() for name, schema in schemas().items()}
    write_together(files)
    return list(files)


def text_of(schema: dict[str, Any]) -> str:
    """Return a schema as it stands in its file."""
    import json

    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"
