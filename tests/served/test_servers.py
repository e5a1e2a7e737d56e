"""An edit in real servers: the same probability as in errata, and its absence noticed.

`make test-served` sets the servers up and fetches SmolLM2. llama.cpp runs on the 4-bit file that
the model here was dequantised from, and computes with activations in 8 bits; where every fact of
the sample sheet is compared, on the same weights in float32, so that only the edits can differ.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import errata
from errata.cli.app import app
from errata.model import named
from errata.served import Client, Endpoint, Request
from errata.sheets import load_sheet
from errata.sheets.building import build

pytestmark = [pytest.mark.served, pytest.mark.timeout(3600)]

HOME = Path(errata.__file__).parents[2] / ".served"
SAMPLE = HOME.parent / "examples" / "smollm2"
PROMPT, TARGET = "The capital of France is", "Tokyo"
AGREE = 2e-3
"""Largest difference of the target's probability between errata and a server."""
NAME = "smollm2"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 4-bit file of SmolLM2."""
    own = os.environ.get("ERRATA_TEST_GGUF")
    if own:
        return Path(own).expanduser()
    kept = named.cache_root() / "models" / named.MODELS[NAME].file
    if not kept.is_file():
        if os.environ.get("ERRATA_FETCH") != "1":
            pytest.skip("SmolLM2's GGUF file has not been fetched: make test-served")
        found = named._fetched(NAME, named.MODELS[NAME], tmp_path_factory.mktemp("gguf"))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(found.read_bytes())
    return kept


@pytest.fixture(scope="module")
def lm() -> errata.LM:
    there = (named.cache_root() / "models" / NAME / "config.json").is_file()
    if not there and os.environ.get("ERRATA_FETCH") != "1":
        pytest.skip("SmolLM2 has not been fetched: make test-served")
    return errata.load(NAME)


@pytest.fixture(scope="module")
def patch(lm: errata.LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = errata.edit(lm, PROMPT, TARGET, subject="France", editor="ft")
    assert made.report.taken == 1
    return made.save(tmp_path_factory.mktemp("made") / "tokyo")


@pytest.fixture(scope="module")
def sheet(lm: errata.LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build of the sample sheet."""
    if not SAMPLE.is_dir():
        pytest.skip("the examples are not in this checkout")
    made = build(lm, load_sheet(SAMPLE)).patch
    assert made.report.taken == 20
    return made.save(tmp_path_factory.mktemp("sheet") / "corrections")


def verify(*words: str | Path) -> tuple[int, dict[str, Any], str]:
    """Run `errata verify`; see `run`."""
    return run("verify", *words)


def run(*words: str | Path) -> tuple[int, dict[str, Any], str]:
    """Run a command; returns the exit code, the document and stderr."""
    command = [*map(str, words), "--json"]
    done = CliRunner().invoke(app, command, prog_name="errata")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout or "{}"), done.stderr


@contextmanager
def running(
    command: list[str | Path],
    ready: Callable[[subprocess.Popen[str]], str],
    log: Path,
    **env: str,
) -> Iterator[str]:
    """Start a server; yields its address and ends it."""
    with log.open("w") as errors:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **env}
        )
        try:
            yield ready(server)
        finally:
            server.terminate()
            server.communicate(timeout=60)


@contextmanager
def llama(tmp_path: Path, base: Path, *adapter: Path, exact: bool = False) -> Iterator[str]:
    if not (HOME / "llama").is_dir():
        pytest.skip("llama.cpp is not set up: make test-served")

    def ready(server: subprocess.Popen[str]) -> str:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, (tmp_path / "llama.log").read_text()[-2000:]
        return address

    script = Path(__file__).with_name("llama_server.py")
    flags = ["--exact"] if exact else []
    command: list[str | Path] = [sys.executable, script, *flags, base, *adapter]
    with running(command, ready, tmp_path / "llama.log", PYTHONPATH=str(HOME / "llama")) as address:
        yield address


def kept(patch: Path) -> float:
    """Probability of the target under the patch, as errata computes it."""
    return errata.Patch.load(patch).report.edits[0].p_after or 0.0


def agree(patch: Path, found: dict[str, Any], server: str) -> float:
    """Say how far the probabilities of a server are from errata's; returns the largest distance."""
    own = {one.edit.prompt: one.p_after for one in errata.Patch.load(patch).report.edits}
    edits = [one for one in found["results"] if one["kind"] == "edit"]
    assert len(edits) == len(own)
    apart = sorted((abs(one["p"] - own[one["prompt"]]), one["prompt"]) for one in edits)
    near = sum(distance <= AGREE for distance, _ in apart)
    print(f"{server}: {near} of {len(apart)} agree, the largest distance is {apart[-1]}")
    return apart[-1][0]


def test_llama_cpp_serves_the_edit(lm, patch: Path, gguf: Path, tmp_path: Path) -> None:
    made = errata.Patch.load(patch).to_gguf(lm, tmp_path / "adapter", base=str(gguf))
    with llama(tmp_path, gguf, made.file) as url:
        code, found, said = verify(patch, "--endpoint", url)
        assert code == 0, said
        (edit,) = [one for one in found["results"] if one["kind"] == "edit"]
        print(f"{TARGET}: errata {kept(patch):.4f}, llama.cpp {edit['p']:.4f}")
        assert edit["p"] == pytest.approx(kept(patch), abs=AGREE)
        assert verify(made.folder, "--endpoint", url)[0] == 0  # by the record beside the adapter


def test_llama_cpp_without_the_adapter_is_noticed(lm, patch: Path, gguf: Path, tmp_path) -> None:
    with llama(tmp_path, gguf) as url:
        code, found, said = verify(patch, "--endpoint", url)
        assert code == 3
        assert "Is the adapter applied?" in said
        assert found["unedited"]
        base = Client(Endpoint.of(url)).ask(Request(PROMPT, 1)).probability("Paris")
    (row,) = lm.score([lm.row(PROMPT, "Paris")])
    own = math.exp(sum(row.logprobs))
    print(f"Paris, unedited: errata {own:.4f}, llama.cpp {base:.4f}")
    assert base == pytest.approx(own, abs=AGREE)


def test_two_servers_are_compared(lm, patch: Path, gguf: Path, tmp_path: Path) -> None:
    made = errata.Patch.load(patch).to_gguf(lm, tmp_path / "adapter", base=str(gguf))
    (tmp_path / "base").mkdir()
    with llama(tmp_path, gguf, made.file) as url, llama(tmp_path / "base", gguf) as base:
        code, found, said = verify(patch, "--endpoint", url, "--endpoint-base", base)
        assert code == 0, said
        assert found["results"][0]["base_says"].strip().startswith("Paris")
        code, _, said = verify(patch, "--endpoint", base, "--endpoint-base", f"{base}/")
        assert code == 2, said


def test_every_fact_of_the_sheet_in_llama_cpp(lm, sheet: Path, gguf: Path, tmp_path: Path) -> None:
    from tests.served.unquantised import unquantised

    base = unquantised(gguf, tmp_path / "float32.gguf")
    made = errata.Patch.load(sheet).to_gguf(lm, tmp_path / "adapter", base=str(base))
    with llama(tmp_path, base, made.file, exact=True) as url:
        code, found, said = verify(sheet, "--endpoint", url)
        assert code == 0, said
        assert agree(sheet, found, "llama.cpp, the same weights in float32") <= AGREE
        # no more may have moved there than here: the gates of the sheet are asked of the server
        code, _, said = run("sheet", "check", SAMPLE, "--patch", sheet, "--endpoint", url)
        assert code == 0, said
        code, found, said = run("sheet", "status", SAMPLE, "--patch", sheet, "--endpoint", url)
        assert code == 0, said
        assert all(row["served"] and not row["base"] for row in found["facts"])
    (tmp_path / "small").mkdir()
    with llama(tmp_path / "small", gguf, made.file) as url:  # as it would be served
        code, found, said = verify(sheet, "--endpoint", url)
        assert code == 0, said
        agree(sheet, found, "llama.cpp, 4 bits")
    (tmp_path / "base").mkdir()
    with llama(tmp_path / "base", gguf) as url:
        code, _, said = run("sheet", "check", SAMPLE, "--patch", sheet, "--endpoint", url)
        assert code == 3
        assert "Is the adapter applied?" in said


@contextmanager
def vllm(tmp_path: Path, base: str, **adapters: Path) -> Iterator[str]:
    program = HOME / "vllm" / "bin" / "python"
    if not program.is_file():
        pytest.skip("vLLM is not set up: make test-served")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"

    def ready(server: subprocess.Popen[str]) -> str:
        client = Client(Endpoint.of(url, retries=0, timeout=5))
        for _ in range(600):
            try:
                client.models()
                return url
            except errata.ErrataError:
                assert server.poll() is None, (tmp_path / "vllm.log").read_text()[-3000:]
                time.sleep(1)
        raise AssertionError("vLLM does not answer after ten minutes")

    # `vllm serve` asks for the version of a package `vllm`; that of the CPU build has another name
    command: list[str | Path] = [
        program, "-m", "vllm.entrypoints.openai.api_server", "--model", base,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4",
        "--enable-lora", "--max-lora-rank", "32", "--max-loras", str(len(adapters)),
        "--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items()),
    ]  # fmt: skip
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with running(command, ready, tmp_path / "vllm.log", **env) as address:
        yield address


def test_vllm_serves_the_edits(lm, patch: Path, sheet: Path, tmp_path: Path) -> None:
    report = errata.Patch.load(patch).to_lora(lm, tmp_path / "tokyo", max_rank=16)
    whole = errata.Patch.load(sheet).to_lora(lm, tmp_path / "corrections")
    assert report.serve is not None
    assert whole.serve is not None
    base = report.base
    with vllm(tmp_path, base, tokyo=report.folder, corrections=whole.folder) as url:
        asked = ("--endpoint", url)
        for made, name in ((patch, "tokyo"), (sheet, "corrections")):
            words = (made, *asked, "--served-model")
            code, found, said = verify(*words, name, "--endpoint-base", base)
            assert code == 0, said
            assert agree(made, found, f"vLLM, {name}") <= AGREE
            code, _, said = verify(*words, base)
            assert code == 3
            assert "Is the adapter applied?" in said
