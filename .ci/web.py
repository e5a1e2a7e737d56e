"""Set up what `make test-web` drives the page of `errata web` with, apart from .venv.

python3 .ci/web.py    .web: .venv as it is, and Gradio and Playwright on top (100 MB)

Every release is named in .ci/web.txt, with what it needs and .venv does not have; nothing of .venv
is changed. What is there already is left alone. The browser is the system's chromium, else the one
that `.web/bin/python -m playwright install chromium` fetches. Standard library only.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = Path(__file__).with_name("web.txt")


def main() -> None:
    """Make the environment if there is none of these releases."""
    home = ROOT / ".web"
    python, ready = home / "bin" / "python", home / ".ready"
    wanted = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if ready.is_file() and ready.read_text(encoding="ascii") == wanted:
        return
    print("  Gradio and Playwright into .web (once, 100 MB)", flush=True)
    base = ROOT / ".venv" / "bin" / "python"
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([base, "-m", "venv", home], check=True)
    below = site_packages(base)
    link = f"import site; site.addsitedir({str(below)!r})\n"
    (site_packages(python) / "below.pth").write_text(link, encoding="utf-8")
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", PINS]
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nset-up failed: pip {' '.join(map(str, command[3:]))}")
    ready.write_text(wanted, encoding="ascii")


def site_packages(python: Path) -> Path:
    """Return where an interpreter has its packages."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


if __name__ == "__main__":
    main()
