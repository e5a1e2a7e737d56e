"""The exceptions that errata raises for a user's mistakes, and nothing else.

```
ErrataError              shown to the user without a traceback; exit code 1
├── ConfigError          a setting, flag or name is wrong; exit code 2
│   └── ArgumentError    a program handed over a thing of another kind; also a TypeError
├── DataError            a file or record is broken
├── EditError            a request cannot be edited (subject absent, empty target, NaN update …)
├── SpecError            the architecture of a model could not be established
├── PatchError           a patch is broken, or belongs to another model
├── ModelError           a model cannot be loaded or used (unknown, NaN weights, context too long)
├── RunError             a run folder cannot be used (locked, exists, other configuration)
├── EndpointError        a server cannot be asked, or its answers cannot be read
├── GateError            a threshold was missed; exit code 3
└── MissingExtra         an optional dependency is not installed
```

Anything else that escapes is a bug of errata and keeps its traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from errata.case import Edit


class ErrataError(Exception):
    """A mistake that the user can mend.

    Args:
        message: What happened and what was expected.
        hint: What to type or do next; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class ConfigError(ErrataError):
    """A setting, flag or name is not one that errata knows."""

    exit_code = 2


class ArgumentError(ConfigError, TypeError):
    """An argument of the Python interface is of another kind than is meant."""


class DataError(ErrataError):
    """A data file or one of its records is broken."""


class EditError(ErrataError):
    """An edit request cannot be carried out; the model is untouched.

    Args:
        message: What happened and what was expected.
        hint: What to type or do next.
        edits: The edits that are to blame, as far as known: without them the rest of their group
            can be tried again.
    """

    def __init__(
        self, message: str, hint: str | None = None, *, edits: Sequence[Edit] = ()
    ) -> None:
        super().__init__(message, hint)
        self.edits: tuple[Edit, ...] = tuple(edits)


class SpecError(ErrataError):
    """The sites of a model could not be found with certainty."""


class PatchError(ErrataError):
    """A patch is broken, or does not belong to this model."""


class ModelError(ErrataError):
    """A model cannot be loaded, or holds values it must not hold."""


class RunError(ErrataError):
    """A run folder cannot be written or resumed."""


class EndpointError(ErrataError):
    """A server does not answer, or not in a way that can be read."""


class GateError(ErrataError):
    """The work finished, but a required threshold was missed."""

    exit_code = 3


class MissingExtra(ErrataError):
    """An optional dependency is needed for this.

    Args:
        what: What the user asked for, for example ``"figures"``.
        package: The missing package.
        extra: The extra of errata that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} need {package}", f"pip install 'errata[{extra}]'")
