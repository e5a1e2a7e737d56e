"""Bring an environment to the versions it is for, or leave it alone when it has them.

python3 .ci/environment.py locked           .venv: exactly what requirements.lock names
python3 .ci/environment.py newest [TORCH]   .venv-newest: the newest releases
python3 .ci/environment.py oldest [TORCH]   .venv-oldest: the lower bounds of pyproject.toml
python3 .ci/environment.py site             .venv-site: exactly what .ci/site.txt names, and .venv
python3 .ci/environment.py check            exit with 1 if this interpreter is not as locked

TORCH is a version, or `newest`. Standard library only; run by the Makefile.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import versions
from versions import LOCK, ROOT

PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")

# hatchling asks for this one when it installs a folder in place; without isolation nobody else does
EDITABLES = "editables"

SITE = ROOT / ".ci" / "site.txt"


def deviations() -> list[str]:
    """Return where this interpreter's packages differ from the lock. More packages may be there."""
    try:
        from packaging.markers import Marker
    except ImportError:
        from pip._vendor.packaging.markers import Marker

    found = []
    for pin in versions.read_pins(LOCK.read_text(encoding="utf-8")):
        if pin.marker and not Marker(pin.marker.removeprefix(" ; ")).evaluate():
            continue
        have = installed(pin.name)
        if have is None or have.partition("+")[0] != pin.version:
            found.append(f"{pin.name}=={pin.version} (have {have})")
    if installed("errata") is None:
        found.append("errata")
    return found


def installed(name: str) -> str | None:
    """Return the version of a package in this interpreter, if it is there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def complete(python: Path) -> bool:
    """Return whether the environment of that interpreter is as locked."""
    command = [python, __file__, "check"]
    return (
        python.exists() and not subprocess.run(command, capture_output=True, check=False).returncode
    )


def run(step: str, *command: str | Path) -> None:
    """Run one step of the set-up; stop with its output if it fails."""
    print(f"  {step}", flush=True)
    output = subprocess.PIPE
    done = subprocess.run(
        command, cwd=ROOT, check=False, text=True, stdout=output, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nset-up failed: {step}")


def interpreter(wanted: tuple[int, int]) -> str:
    """Return the python of that version: this one, or one on the path."""
    name = "python{}.{}".format(*wanted)
    found = sys.executable if sys.version_info[:2] == wanted else shutil.which(name)
    return found or sys.exit(f"{name} is needed for this and is not on the path")


def version_of(python: str | Path) -> str:
    """Return which python an interpreter is, as 3.11; nothing if it is not there."""
    if not Path(python).exists():
        return ""
    ask = "import sys; print('{}.{}'.format(*sys.version_info))"
    return subprocess.run([python, "-c", ask], capture_output=True, check=True, text=True).stdout


def make(folder: Path, base: str) -> Path:
    """Return the interpreter of an environment, which is made if there is none of this python."""
    python = folder / "bin" / "python"
    if version_of(python) != version_of(base):
        run(f"python -m venv {folder.name}", base, "-m", "venv", "--clear", folder)
    return python


def errata(python: Path) -> None:
    """Install this folder, in place, with the environment's own build tools."""
    run("errata", python, *PIP, "--no-deps", "--no-build-isolation", "-e", ".")


def locked() -> None:
    """Bring .venv to the lock."""
    python = ROOT / ".venv" / "bin" / "python"
    if complete(python):
        return
    print("setting up .venv (once, some minutes)", flush=True)
    if not python.exists():
        run("python -m venv .venv", sys.executable, "-m", "venv", ROOT / ".venv")
    pins = {pin.name: pin for pin in versions.read_pins(LOCK.read_text(encoding="utf-8"))}
    run("pip", python, *PIP, pins["pip"].pinned())
    run("what requirements.lock names", python, *PIP, "-r", LOCK)
    errata(python)
    done = subprocess.run([python, __file__, "check"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"set-up failed: {done.stderr}")


def newest(torch: str) -> None:
    """Bring .venv-newest to the newest releases."""
    wanted = versions.declared(versions.read_project(), versions.EXTRAS)
    kept = [text for text in versions.held() if not (torch and text.startswith("torch=="))]
    wanted = versions.with_torch(wanted, torch) if torch else [*wanted, *kept]
    python = make(ROOT / ".venv-newest", sys.executable)
    upgrade = ("--upgrade", "--upgrade-strategy", "eager")
    run("pip", python, *PIP, "--upgrade", "pip")
    run("the newest releases", python, *PIP, *upgrade, *wanted, EDITABLES)
    errata(python)


def oldest(torch: str) -> None:
    """Bring .venv-oldest to the declared lower bounds; pip chooses what those packages need."""
    project = versions.read_project()
    wanted = versions.lowest(versions.declared(project, versions.EXTRAS))
    python = make(ROOT / ".venv-oldest", interpreter(versions.oldest_python(project)))
    run("pip", python, *PIP, "--upgrade", "pip")
    wanted = versions.with_torch(wanted, torch) if torch else wanted
    run("the oldest releases", python, *PIP, *wanted, EDITABLES)
    errata(python)


def site() -> None:
    """Bring .venv-site to .ci/site.txt; notebooks run in it, so it sees the packages of .venv."""
    folder, pins = ROOT / ".venv-site", SITE.read_text(encoding="utf-8")
    stamp = folder / SITE.name
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pins:
        return
    print("setting up .venv-site (once, a minute)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    locked = str(ROOT / ".venv" / "bin" / "python")
    python = make(folder, locked)
    run("what .ci/site.txt names", python, *PIP, "-r", SITE)
    own, theirs = (packages(str(one)) for one in (python, locked))
    # behind its own packages, with the path files there: errata is installed in place
    link = f"import site; site.addsitedir({theirs!r})\n"
    Path(own, "venv.pth").write_text(link, encoding="utf-8")
    stamp.write_text(pins, encoding="utf-8")


def packages(python: str) -> str:
    """Return where an interpreter's packages lie."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'), end='')"
    return subprocess.run([python, "-c", ask], capture_output=True, check=True, text=True).stdout


if __name__ == "__main__":
    task, torch = (*sys.argv[1:], "")[:2]
    if task == "check":
        sys.exit(", ".join(deviations()) or 0)
    if task in ("locked", "site"):
        {"locked": locked, "site": site}[task]()
    else:
        {"newest": newest, "oldest": oldest}[task](torch)
