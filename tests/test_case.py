"""What is handed to an editor as edits, and is none."""

from __future__ import annotations

import pytest

from errata.case import Edit, check_groups
from errata.editors import get_editor
from errata.errors import EditError
from tests.conftest import build

EDIT = Edit("Anna lives in", "Rome", subject="Anna")


@pytest.mark.parametrize("groups", [[[EDIT]], ((EDIT, EDIT), [EDIT]), {0: [EDIT]}.values(), []])
def test_groups(groups: object) -> None:
    check_groups(groups)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (EDIT, "groups: Edit given; expected a list of groups"),
        ("Anna lives in Rome", "groups: str given"),
        (None, "groups: NoneType given"),
        ([EDIT], "group 0: Edit given"),
        ([[EDIT], {"prompt": "Anna lives in"}], "group 1: dict given"),
        ([[EDIT], []], "group 1 is empty"),
        ([[EDIT, {"prompt": "Anna lives in"}]], "group 0 holds a dict"),
    ],
)
def test_what_is_no_list_of_groups(groups: object, message: str) -> None:
    with pytest.raises(EditError, match=message):
        get_editor("none").edit(build("gpt2"), groups)  # pyright: ignore[reportArgumentType]
