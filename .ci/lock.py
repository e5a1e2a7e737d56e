"""Write requirements.lock: the newest releases that pip finds, but for what .ci/held.txt holds.

One file serves every supported python and system. It is resolved by the oldest python, whose
releases the newer ones take too; what a package needs only elsewhere (as in `setuptools;
python_version >= "3.12"`) is resolved as well and keeps its marker. There are no hashes: the
builds of torch differ by machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import environment
import versions

HEADER = """\
# The versions that `make demo`, `make test` and CI run on; written by `make lock`, not by hand.
# Users of the library have the range in pyproject.toml: `make test-oldest`, `make test-newest`.
"""

# torch's CUDA builds pin their own libraries to the digit; its CPU builds have none
TORCH_PINS = ("nvidia-", "cuda-", "triton")

SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
)


def everywhere(project: dict) -> list[dict[str, str]]:
    """Return the environments that the lock serves, as markers see them."""
    prefix = "Programming Language :: Python :: "
    names = [text.removeprefix(prefix) for text in project["project"]["classifiers"]]
    pythons = [name for name in names if name.startswith("3.")]
    return [
        {"python_version": python, "python_full_version": f"{python}.0", **system}
        for python in pythons
        for system in SYSTEMS
    ]


Need = tuple[str, str, str, set[int]]
"""Name, range, marker, and the numbers of the environments in which it holds."""


def needs(item: dict, served: list[dict[str, str]]) -> list[Need]:
    """Return what one package of pip's report needs."""
    from pip._vendor.packaging.requirements import Requirement

    found = []
    for text in item["metadata"].get("requires_dist", ()):
        need = Requirement(text)
        name = versions.canonical(need.name)
        extras = item.get("requested_extras", []) or [""]
        where = {
            number
            for number, environment in enumerate(served)
            for extra in extras
            if not need.marker or need.marker.evaluate({**environment, "extra": extra})
        }
        if where and not name.startswith(TORCH_PINS):
            found.append((name, str(need.specifier), str(need.marker or ""), where))
    return found


def lines(
    report: dict, roots: set[str], served: list[dict[str, str]]
) -> tuple[list[str], list[str]]:
    """Return the lock's lines, and requirements that are still to be resolved."""
    locked = {versions.canonical(item["metadata"]["name"]): item for item in report["install"]}
    markers: dict[str, dict[str, set[int]]] = {}
    missing = []
    for item in locked.values():
        for name, specifier, marker, where in needs(item, served):
            # a marker that holds in every environment served says nothing
            always = len(where) == len(served)
            markers.setdefault(name, {})["" if always else marker] = where
            if name not in locked:
                missing.append(name + specifier)
    written = []
    for name, item in sorted(locked.items()):
        version = item["metadata"]["version"].partition("+")[0]
        by = markers.get(name, {"": set()})
        where = "" if name in roots or "" in by else " or ".join(sorted(by))
        written.append(f"{name}=={version}" + (f" ; {where}" if where else ""))
    return written, missing


def resolve(wanted: list[str]) -> dict:
    """Return pip's report of what it would install."""
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run")
    command = [sys.executable, *pip, "--ignore-installed", "--report", "-", *wanted]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(done.stdout) if not done.returncode else sys.exit("pip finds no versions")


def write() -> None:
    """Resolve until every environment has what its packages need, then write the file."""
    project = versions.read_project()
    declared = [*versions.declared(project), *versions.held()]
    extra = [environment.EDITABLES, "pip"]
    roots = {versions.parse(text).name for text in declared} | set(extra)
    wanted, missing = [*declared, *extra], [""]
    while missing:
        written, missing = lines(resolve(wanted), roots, everywhere(project))
        wanted += missing
    versions.LOCK.write_text(HEADER + "\n".join(written) + "\n", encoding="utf-8")
    print(f"  {versions.LOCK.name}: {len(written)} packages")


def main() -> None:
    """Resolve in an empty environment of the oldest python, with the newest pip."""
    oldest = environment.interpreter(versions.oldest_python(versions.read_project()))
    with tempfile.TemporaryDirectory() as folder:
        python = environment.make(Path(folder) / "venv", oldest)
        environment.run("pip", python, *environment.PIP, "--upgrade", "pip")
        sys.exit(subprocess.run([python, __file__, "write"], check=False).returncode)


if __name__ == "__main__":
    write() if sys.argv[1:] else main()
