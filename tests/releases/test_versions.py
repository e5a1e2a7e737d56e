"""What pyproject.toml, the lock and the held versions say of each other."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def versions() -> ModuleType:
    return script("versions")


def script(name: str) -> ModuleType:
    """Import a file of .ci."""
    folder = str(ROOT / ".ci")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(f"ci_{name}", f"{folder}/{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # data classes look their own module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def locked(versions: ModuleType) -> dict[str, Requirement]:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return {pin.name: Requirement(pin.pinned()) for pin in versions.read_pins(text)}


def exact(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def test_the_lock_covers_all_that_is_declared_within_its_bounds(
    versions: ModuleType, locked: dict[str, Requirement]
) -> None:
    for text in versions.declared(versions.read_project()):
        wanted = Requirement(text)
        pin = locked[versions.canonical(wanted.name)]
        assert pin.marker is None, f"{pin} is declared for every system"
        assert wanted.specifier.contains(exact(pin)), f"{pin} is not {wanted}"


def test_the_lock_has_what_is_held_and_what_set_up_needs(
    versions: ModuleType, locked: dict[str, Requirement]
) -> None:
    for text in versions.held():
        assert exact(locked[Requirement(text).name]) == exact(Requirement(text))
    assert {"pip", "editables", "hatchling"} <= set(locked)


def test_the_lock_names_versions_only() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9][0-9a-z.]*( ; .*)?", line), line
        assert "/" not in line, line
    names = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))


@pytest.mark.parametrize("python", PYTHONS)
def test_what_a_locked_package_needs_is_locked_too(
    versions: ModuleType, locked: dict[str, Requirement], python: str
) -> None:
    """For every python, on this system; checked where a package's locked release is installed."""
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    checked = 0
    for name, pin in locked.items():
        if name == "torch" or versions.canonical(name) not in installed():
            continue  # torch's CUDA builds need libraries that they pin themselves
        if installed()[name].partition("+")[0] != exact(pin):
            continue
        checked += 1
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({**here, "extra": ""}):
                continue
            found = locked.get(versions.canonical(need.name))
            assert found is not None, f"{name} needs {need}"
            assert need.specifier.contains(exact(found), prereleases=True), f"{name}: {need}"
            if found.marker is not None:
                assert Marker(str(found.marker)).evaluate(here), f"{name} needs {need} on {python}"
    if not checked:
        pytest.skip("no locked release is installed here")


@cache
def installed() -> dict[str, str]:
    return {
        re.sub(r"[-_.]+", "-", found.name).lower(): found.version
        for found in metadata.distributions()
    }


def test_declared_bounds_are_lower_bounds(versions: ModuleType) -> None:
    """The oldest environment is derived from them, so each is one version in one form."""
    project = versions.read_project()
    extras = tuple(name for name in project["project"]["optional-dependencies"] if name != "all")
    for text in versions.declared(project, extras):
        (specifier,) = Requirement(text).specifier
        assert specifier.operator == ">=", text
        assert versions.parse(text).version == specifier.version


def test_lowest_is_the_bound_itself(versions: ModuleType) -> None:
    wanted = ["numpy>=2.1", "pyright[nodejs]>=1.1.390", "a_B.c >= 1 ; python_version < '3.12'"]
    assert versions.lowest([*wanted, "numpy>=2.1"]) == [
        "numpy==2.1",
        "pyright[nodejs]==1.1.390",
        "a-b-c==1 ; python_version < '3.12'",
    ]
    for text in ("numpy", "numpy>=1,<2", "numpy~=1.2", "numpy @ https://example.org/n.whl"):
        with pytest.raises(ValueError, match="expected a name and one bound"):
            versions.parse(text)


def test_another_torch(versions: ModuleType) -> None:
    assert versions.with_torch(["numpy>=2.1", "torch>=2.6"], "2.13.0") == [
        "torch==2.13.0",
        "numpy>=2.1",
    ]
    assert versions.with_torch(["torch==2.6"], "newest") == ["torch"]


def test_pins_are_read_without_remarks(versions: ModuleType) -> None:
    pins = versions.read_pins("# why\n\ntorch==2.13.0  # here\nx==1 ; sys_platform == 'linux'\n")
    assert [pin.pinned() for pin in pins] == ["torch==2.13.0", "x==1 ; sys_platform == 'linux'"]


def test_oldest_python_is_the_declared_one(versions: ModuleType) -> None:
    assert versions.oldest_python({"project": {"requires-python": ">=3.11"}}) == (3, 11)
    project = versions.read_project()
    assert Version("{}.{}".format(*versions.oldest_python(project))) == Version(PYTHONS[0])


@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")  # pip's own, with old ones
class TestLines:
    """The lock's lines, from a report as pip writes it."""

    @staticmethod
    def item(name: str, version: str, *requires: str, extras: tuple[str, ...] = ()) -> dict:
        made = {"name": name, "version": version, "requires_dist": list(requires)}
        return {"metadata": made, "requested_extras": list(extras)}

    def lines(self, *items: dict) -> tuple[list[str], list[str]]:
        lock = script("lock")
        project = lock.versions.read_project()
        return lock.lines({"install": list(items)}, {"torch", "app"}, lock.everywhere(project))

    def test_a_local_version_is_left_out_and_names_are_canonical(self) -> None:
        found = self.lines(self.item("torch", "2.13.0+cpu"), self.item("App", "1"))
        assert found == (["app==1", "torch==2.13.0"], [])

    def test_what_is_needed_in_some_environments_keeps_its_marker(self) -> None:
        old = 'old>=1; python_version < "3.12"'
        app = self.item("app", "1", old, "both>=1")
        found = self.lines(app, self.item("old", "1.5"), self.item("both", "2"))
        assert found == (["app==1", "both==2", 'old==1.5 ; python_version < "3.12"'], [])

    def test_what_is_needed_elsewhere_only_is_still_to_be_resolved(self) -> None:
        app = self.item(
            "app", "1", 'new>=3; python_version >= "3.12"', 'mac>=1; sys_platform == "darwin"',
            'never>=1; python_version < "3"', 'more>=1; extra == "plot"', "nvidia-nccl-cu12==2.21",
        )  # fmt: skip
        assert self.lines(app) == (["app==1"], ["new>=3", "mac>=1"])

    def test_extras_count_when_they_are_asked_for(self) -> None:
        need = 'node>=2; extra == "nodejs"'
        assert self.lines(self.item("app", "1", need, extras=("nodejs",)))[1] == ["node>=2"]
        found = self.lines(self.item("app", "1", need, extras=("nodejs",)), self.item("node", "2"))
        assert found == (["app==1", "node==2"], [])
