"""Bad input gets a clear error and loses nothing."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from errata.errors import ErrataError
from tests.cli.conftest import FACT, FAST, Errata, tree
from tests.tiny_models import TINY, tiny_tokenizer


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edti"], "edit"),
        (["edit", "--promt", "x"], "--prompt"),
        (["ls", "editor"], "editors"),
        (["world", "fact"], "facts"),
        (["edit", "--editor", "roem", "--prompt", "a", "--target", "b"], "'rome'"),
        (["edit", "--set", "stepps=3", "--prompt", "a", "--target", "b"], "'steps'"),
        (["edit", "--set", "steps=few", "--prompt", "a", "--target", "b"], "steps"),
        (["edit", "--set", "steps", "--prompt", "a", "--target", "b"], "key=value"),
        (["edit", "--as-published", "gpt2-xxl", "--prompt", "a", "--target", "b"], "gpt2-xl"),
        (["edit", "--regime", "both", "--prompt", "a", "--target", "b"], "sequential"),
        (["edit", "--prompt", "a"], "--target"),
        (["edit"], "--prompt"),
        (["edit", "--edits", "f.jsonl", "--prompt", "a"], "one or the other"),
        (["eval", "--data", "zrse"], "'zsre'"),
        (["eval", "--data", "world", "--split", "tset"], "'test'"),
        (["eval", "--data", "world", "--data-set", "scal=test"], "'scale'"),
        (["eval", "--data", "world", "--regime", "batch:no"], "batch:10"),
        (["eval", "--data", "world", "--fail-under", "reliabilty=1"], "'reliability'"),
        (["eval", "--data", "world", "--fail-under", "reliability=95"], "between 0 and 1"),
        (["eval", "--data", "world", "--resume", "--no-save"], "--resume"),
        (["export", "p", "--to", "merged", "--out", "o", "--max-rank", "2"], "--max-rank"),
        (["world", "facts", "--scale", "pockt"], "pocket"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(errata: Errata, here: Path, words: list[str], said: str) -> None:
    done = errata(*words)
    assert done.code == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert tree(here) == {}


def test_a_name_that_is_not_utf_8_is_refused(errata: Errata, here: Path) -> None:
    done = errata("scale", "rome", "0.5", "--out", "\udced\udca0", "--json")
    assert (done.code, done.stdout) == (2, "")
    assert r"'\udced\udca0' is not UTF-8" in done.stderr
    assert tree(here) == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", " ", "--subject", "France"], "target"),
        (["--target", "", "--subject", "France"], "target"),
        (["--target", "Rome", "--subject", "Spain"], "Spain"),
        (["--target", "Rome"], "subject"),
    ],
)
def test_requests_that_cannot_be_edited(
    errata: Errata, here: Path, model: str, words: list[str], said: str
) -> None:
    prompt = ("--prompt", "The capital of France is")
    done = errata("edit", "-m", model, *prompt, *words, *FAST, "--out", "p", "--json")
    assert (done.code, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(here) == {}


def test_prompt_longer_than_the_context(errata: Errata, model: str) -> None:
    long = "France " * 400 + "is"
    words = ("--prompt", long, "--target", "Rome", "--subject", "France")
    done = errata("edit", "-m", model, *words, *FAST)
    assert done.code == 1
    assert "256" in done.stderr


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder"])
def test_unknown_model(errata: Errata, name: str) -> None:
    done = errata("edit", "-m", name, *FACT)
    assert (done.code, done.stdout) == (1, "")
    assert name in done.stderr


def test_unknown_dtype_device_and_site(errata: Errata, model: str) -> None:
    assert "bfloat16" in errata("edit", "-m", model, *FACT, "--dtype", "bfloat6").stderr
    assert errata("edit", "-m", model, *FACT, "--device", "gpu").code == 2
    assert errata("edit", "-m", model, *FACT, "--site", "ffn_out").code == 2
    done = errata("doctor", model, "--site", "fnn_out=x")
    assert done.code == 1
    assert "'ffn_out'" in done.stdout
    assert "checks failed: sites" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt": "a b", "target": "c"}\n{"prompt": \n', "e.jsonl:2"),
        ('{"prompt": "a", "target": "café"}\n'.encode("latin-1"), "UTF-8"),
        (b'{"prompt": "a", "target": "b", "id": "1"}\n' * 2, "'1'"),
        (b'{"prompt": "a", "traget": "b"}\n', "target"),
        (b"", "holds no"),
    ],
    ids=["broken line", "wrong encoding", "duplicate id", "unknown field", "empty"],
)
def test_broken_edit_files(errata: Errata, model: str, content: bytes, said: str) -> None:
    Path("e.jsonl").write_bytes(content)
    done = errata("edit", "-m", model, "--edits", "e.jsonl", *FAST, "--out", "p")
    assert (done.code, done.stdout) == (1, "")
    assert "e.jsonl" in done.stderr
    assert said in done.stderr
    assert not Path("p").exists()


def test_broken_cases_can_be_left_out(errata: Errata, patch: Path, cases: Path) -> None:
    with cases.open("a", encoding="utf-8") as handle:
        handle.write("{broken\n")
    done = errata("verify", patch, "--cases", cases, "--json")
    assert (done.code, done.stdout) == (1, "")
    assert "cases.jsonl:4" in done.stderr
    done = errata("verify", patch, "--cases", cases, "--skip-bad", "--json")
    assert done.json["cases"] == 3
    assert "cases.jsonl:4" in done.stderr


def test_patch_for_another_model(errata: Errata, tmp_path: Path, patch: Path) -> None:
    other = tmp_path / "other"
    TINY["llama"]().save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    for words in (
        ("verify", patch, "--cases", "c.jsonl"),
        ("export", patch, "--to", "lora", "--out", "a"),
        ("edit", *FACT, "--after", patch, "--out", "a"),
    ):
        Path("c.jsonl").write_text(
            json.dumps({"id": "1", "edits": [{"prompt": "a b", "target": "c"}]}), encoding="utf-8"
        )
        done = errata(*words, "-m", other)
        assert (done.code, done.stdout) == (1, "")
        assert "made for" in done.stderr
        assert not Path("a").exists()


def test_half_written_patch(errata: Errata, patch: Path) -> None:
    tensors = patch / "patch.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    done = errata("export", patch, "--to", "lora", "--out", "a")
    assert (done.code, done.stdout) == (1, "")
    assert "half-written" in done.stderr
    tensors.unlink()
    assert "not a complete patch" in errata("export", patch, "--to", "lora", "-o", "a").stderr
    assert errata("export", "nowhere", "--to", "lora", "-o", "a").code == 1


def test_half_written_checkpoint(errata: Errata, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    TINY["qwen3"]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = errata("edit", "-m", folder, *FACT)
    assert (done.code, done.stdout) == (1, "")


def test_nan_weights(errata: Errata, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    network = TINY["qwen3"]()
    with torch.no_grad():
        next(network.parameters())[0, 0] = float("nan")
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    done = errata("edit", "-m", folder, *FACT, *FAST)
    assert (done.code, done.stdout) == (1, "")
    assert "NaN" in done.stderr


def test_nothing_is_overwritten_without_force(errata: Errata, model: str, patch: Path) -> None:
    before = tree(patch)
    done = errata("edit", "-m", model, *FACT, *FAST, "--out", patch)
    assert (done.code, done.stdout) == (1, "")
    assert "--force" in done.stderr
    assert tree(patch) == before
    assert errata("edit", "-m", model, *FACT, *FAST, "--out", patch, "--force").code == 0
    assert errata("export", patch, "--to", "lora", "--out", "a").code == 0
    assert "--force" in errata("export", patch, "--to", "lora", "--out", "a").stderr
    assert errata("export", patch, "--to", "lora", "--out", "a", "--force").code == 0


def test_merging_never_removes_other_files(errata: Errata, patch: Path) -> None:
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("dear diary", encoding="utf-8")
    done = errata("export", patch, "--to", "merged", "--out", "notes", "--force")
    assert done.code == 1
    assert Path("notes/diary.txt").read_text(encoding="utf-8") == "dear diary"


def test_folder_that_cannot_be_written(
    errata: Errata, here: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("x", encoding="utf-8")
    for out in ("file", "file/below"):
        done = errata("edit", "-m", model, *FACT, *FAST, "--out", out)
        assert (done.code, done.stdout) == (1, "")
        assert out in done.stderr
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    done = errata("edit", "-m", model, *FACT, *FAST, "--out", "p")
    assert "cannot write to p" in done.stderr


def test_full_disk(errata: Errata, here: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("errata.store.files.os.fsync", full)
    done = errata("edit", "-m", model, *FACT, *FAST, "--out", "p")
    assert (done.code, done.stdout) == (1, "")
    assert "No space left" in done.stderr
    assert tree(here) == {}


def test_debug_shows_the_traceback_wherever_it_stands(errata: Errata) -> None:
    with pytest.raises(ErrataError):
        errata("--debug", "edit", "--prompt", "a")
    with pytest.raises(ErrataError):
        errata("edit", "--prompt", "a", "--debug")


def test_interrupt_says_how_to_go_on(
    errata: Errata, model: str, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("errata.evaluation.evaluate", stop)
    done = errata("eval", "-m", model, "-e", "none", "--data", cases, "--out", "run")
    assert (done.code, done.stdout) == (130, "")
    assert "--resume --out run" in done.stderr


def test_bugs_keep_their_traceback(
    errata: Errata, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("errata.api.compare", bug)
    with pytest.raises(ZeroDivisionError):
        errata("edit", "-m", model, *FACT, *FAST)


def test_as_a_process(here: Path, model: str) -> None:
    """The installed program: one JSON document on stdout, messages on stderr, exit codes."""
    errata = Path(sys.executable).with_name("errata")
    command = [errata, "edit", "-m", model, *FACT, *FAST, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["editor"] == "rome"
    # a busy machine loads slowly, which is told
    assert [line for line in done.stderr.splitlines() if "so far" not in line] == []
    done = subprocess.run([errata, "edit"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    done = subprocess.run([errata, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("errata 0.")
