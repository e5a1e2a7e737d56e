"""What is handed to an editor as edits, and is none."""

from __future__ import annotations

import pytest

from errata.case import Edit, check_groups
from errata.editors import get_editor
from errata.errors import ErrataError
from tests.conftest import build

EDIT = Edit("Anna lives in", "Rome", subject="Anna")


@pytest.mark.parametrize("groups", [[[EDIT]], ((EDIT, EDIT), [EDIT]), {0: [EDIT]}.values(), []])
def test_groups(groups: object) -> None:
    check_groups(groups)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (EDIT, "is an Edit; expected a list of groups"),
        ("Anna lives in Rome", "is a str; expected"),
        (None, "is nothing"),
        ([EDIT], "group 0 is an Edit"),
        ([[EDIT], {"prompt": "Anna lives in"}], "group 1 is a dict"),
        ([[EDIT], []], "group 1 is empty"),
        ([[EDIT, {"prompt": "Anna lives in"}]], "one of group 0 is a dict"),
    ],
)
def test_what_is_no_list_of_groups(groups: object, message: str) -> None:
    with pytest.raises(ErrataError, match=message):
        get_editor("none").edit(build("gpt2"), groups)  # pyright: ignore[reportArgumentType]
