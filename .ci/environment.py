"""Make `.venv` complete, or leave it alone when it is. Standard library only; run by the Makefile.

python3 .ci/environment.py          make it complete
python3 .ci/environment.py --check  exit with 1 if something is missing
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt")


def missing() -> list[str]:
    """Return the declared packages that this interpreter lacks, or has in a wrong version."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {re.split(r"[<>=!~ ;\[]", text)[0].lower() for text in wanted}
    for line in pinned:
        text = line.partition("#")[0].strip()
        if text and re.split(r"[<>=!~ ;\[]", text)[0].lower() in names:
            wanted.append(text)
    lacking = []
    for text in [*wanted, project["project"]["name"]]:
        need = Requirement(text)
        try:
            have = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            lacking.append(text)
            continue
        if not need.specifier.contains(have.partition("+")[0], prereleases=True):
            lacking.append(f"{text} (have {have})")
    return lacking


def complete(python: Path) -> bool:
    """Return whether the environment of that interpreter has everything."""
    if not python.exists():
        return False
    result = subprocess.run(
        [python, __file__, "--check"], cwd=ROOT, capture_output=True, check=False
    )
    return result.returncode == 0


def run(step: str, *command: str | Path) -> None:
    """Run one step of the set-up; stop with its output if it fails."""
    print(f"  {step}", flush=True)
    result = subprocess.run(
        command,
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if result.returncode:
        sys.exit(f"{result.stdout}\nset-up failed: {step}")


def main() -> None:
    """Create what is missing."""
    python = VENV / "bin" / "python"
    if complete(python):
        return
    print("setting up .venv (once, some minutes)", flush=True)
    if not python.exists():
        run("python3 -m venv .venv", sys.executable, "-m", "venv", VENV)
    run("pip", python, *PIP, "--upgrade", "pip>=25.1")
    run("torch", python, *PIP, "torch")  # first, so that the pinned build is what others find
    run("errata and its dependencies", python, *PIP, "-e", ".")
    run("tools for development", python, *PIP, "--group", "dev")
    if not complete(python):
        sys.exit("set-up failed: " + ", ".join(missing()))


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(", ".join(missing()) or 0)
    main()
