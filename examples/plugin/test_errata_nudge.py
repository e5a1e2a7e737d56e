"""The tests that every editor has to pass; install the plug-in first: `pip install -e .`."""

from errata.testing import EditorContract


class TestNudge(EditorContract):
    name = "nudge"
