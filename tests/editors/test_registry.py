"""Editors by name, and the settings that come with a name."""

from __future__ import annotations

from errata.editors import get_editor


def test_own_models_bring_their_settings_and_the_user_wins() -> None:
    found = get_editor("ft", model="pocket").config.model_dump()
    plain = get_editor("ft").config.model_dump()
    assert found["lr"] == get_editor("ft", as_published="pocket").config.model_dump()["lr"]
    assert found != plain
    assert get_editor("ft", overrides=["lr=0.25"], model="pocket").config.model_dump()["lr"] == 0.25
    assert get_editor("ft", model="gpt2-xl").config.model_dump() == plain
    assert get_editor("none", model="pocket").config.model_dump() == {}
