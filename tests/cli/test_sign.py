"""`errata sign` and `--signed-by`: exit codes, sentences, and where a signature is dropped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import FACT, FAST, Errata, tree
from tests.sheets.conftest import fact, toml, write_sheet


@pytest.fixture
def key(errata: Errata, here: Path) -> Path:
    pytest.importorskip("cryptography")
    done = errata("sign", "--new-key", "team.key")
    assert done.code == 0, done.stderr
    assert "team.key.pub" in done.stdout
    return here / "team.key"


PUB = "team.key.pub"


def test_signed_and_checked_without_a_model(errata: Errata, key: Path, patch: Path) -> None:
    done = errata("verify", patch, "--signed-by", PUB)
    assert (done.code, "is not signed" in done.stderr) == (3, True)
    done = errata("sign", patch, "--key", key)
    assert done.code == 0, done.stderr
    assert f"errata verify {patch} --signed-by {key}.pub" in done.stdout
    done = errata("verify", patch, "--signed-by", PUB, "--model", "/nowhere")
    assert done.code == 0, done.stderr
    assert "signed by" in done.stdout
    assert errata("verify", patch, "--signed-by", PUB, "--json").json["passed"] is True
    name = errata("sign", patch, "--key", key, "--json").json["key"]
    assert name in errata("show", patch).stdout
    path = patch / "patch.json"
    path.write_text(path.read_text().replace("Rome", "Oslo"))
    done = errata("verify", patch, "--signed-by", PUB)
    assert (done.code, "patch.json was altered" in done.stderr) == (3, True)
    assert "altered since" in errata("show", patch).stdout


def test_together_with_cases(
    errata: Errata, key: Path, patch: Path, model: str, cases: Path
) -> None:
    errata("sign", patch, "--key", key)
    words = ("verify", patch, "-m", model, "--signed-by", PUB, "--no-neighbours")
    done = errata(*words, "--cases", cases)
    assert done.code == 0, done.stderr
    assert "signed by" in done.stdout
    assert "questions passed" in done.stdout
    done = errata(*words, "--fail-under", "reliability=0", "--json")
    assert done.json["counts"]
    errata("verify", patch, "-m", model, "--no-neighbours")
    assert errata("verify", patch, "--signed-by", PUB).code == 0  # what it notes is not signed
    (patch / "signature.json").unlink()
    done = errata(*words, "--cases", cases)
    assert (done.code, done.stdout) == (3, "")


def test_another_key(errata: Errata, key: Path, patch: Path) -> None:
    errata("sign", "--new-key", "other.key")
    errata("sign", patch, "--key", "other.key")
    done = errata("verify", patch, "--signed-by", PUB)
    assert (done.code, "signed by another key" in done.stderr) == (3, True)
    done = errata("sign", patch, "--key", key)
    assert "is replaced" in done.stderr
    assert errata("verify", patch, "--signed-by", PUB).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("sign",), ("sign", "patch"), ("sign", "--key", "team.key"),
        ("sign", "patch", "--key", "team.key", "--new-key", "x"), ("sign", "--new-key", "team.key"),
        ("sign", "patch", "--key", PUB), ("sign", "patch", "--key", "nowhere"),
        ("verify", "patch", "--signed-by", "team.key"),
    ],
)  # fmt: skip
def test_wrong_usage(errata: Errata, key: Path, patch: Path, here: Path, words: tuple) -> None:
    before = tree(here)
    done = errata(*words)
    assert done.code == 2, done.stderr
    assert tree(here) == before


def test_what_is_no_patch(errata: Errata, key: Path, here: Path) -> None:
    (here / "empty").mkdir()
    done = errata("sign", "empty", "--key", key)
    assert (done.code, "neither a patch nor an adapter" in done.stderr) == (1, True)


def test_a_key_that_others_can_read_is_noted(errata: Errata, key: Path, patch: Path) -> None:
    key.chmod(0o644)
    assert "chmod 600" in errata("sign", patch, "--key", key).stderr


def test_what_is_made_of_a_signed_patch_is_not_signed(
    errata: Errata, key: Path, patch: Path, model: str
) -> None:
    errata("sign", patch, "--key", key)
    again = (*FACT[:3], "Oslo", *FACT[4:])
    for words in (
        ("scale", patch, "0.5", "--out", "two"),
        ("compose", patch, "two", "--allow-contradictions", "--out", "one"),
        ("export", patch, "-m", model, "--to", "lora", "--out", "three"),
        ("edit", "-m", model, *again, *FAST, "--after", patch, "--no-neighbours", "--out", "four"),
        ("scale", patch, "0.5", "--out", patch, "--force"),
    ):
        done = errata(*words)
        assert done.code == 0, (words, done.stderr)
        assert "is signed; what is made of it is not: errata sign" in done.stderr, words
        assert not (Path(words[words.index("--out") + 1]) / "signature.json").exists()
    assert not (patch / "signature.json").exists()


def test_adapters_are_signed_too(errata: Errata, key: Path, patch: Path, model: str) -> None:
    errata("export", patch, "-m", model, "--to", "lora", "--out", "adapter")
    assert errata("sign", "adapter", "--key", key).code == 0
    assert errata("verify", "adapter", "--signed-by", PUB).code == 0
    path = Path("adapter/errata.json")
    path.write_text(path.read_text().replace("Rome", "Oslo"))
    assert errata("verify", "adapter", "--signed-by", PUB).code == 3


def test_a_sheet_is_signed_as_it_is_built(
    errata: Errata, key: Path, model: str, here: Path
) -> None:
    folder = write_sheet(here / "sheet", [fact("France"), fact("Italy")], toml())
    done = errata("sheet", "build", folder, "-m", model, "--sign", PUB)
    assert (done.code, (folder / "patch").exists()) == (2, False)
    words = ("sheet", "build", folder, "-m", model)
    done = errata(*words, "--sign", key)
    assert done.code == 0, done.stderr
    assert "Signed by" in done.stdout
    assert errata("verify", folder / "patch", "--signed-by", PUB).code == 0
    done = errata("sheet", "remove", folder, "italy", "-m", model)
    assert "is signed; what is made of it is not" in done.stderr
    assert errata("verify", folder / "patch", "--signed-by", PUB).code == 3
    assert errata(*words, "--sign", key, "--json").json["signed_by"]
    assert errata("verify", folder / "patch", "--signed-by", PUB).code == 0


def test_the_changelog_is_shown(errata: Errata, model: str, here: Path) -> None:
    folder = write_sheet(here / "sheet", [fact("France"), fact("Italy")], toml())
    words = ("sheet", "build", folder, "-m", model)
    assert errata(*words).code == 0
    write_sheet(folder, [fact("France", "Paris"), fact("Berlin")], toml())
    assert errata(*words).code == 0
    said = errata("show", folder / "patch").stdout
    assert "first build: 2 facts" in said
    assert "+1 fact (berlin), 1 changed (france), 1 removed (italy)" in said
    shown = errata("show", folder / "patch", "--json").json["changelog"]
    assert [one["facts"] for one in shown] == [2, 2]
    copy = shutil.copytree(folder / "patch", here / "copy")
    (copy / "changelog.json").unlink()
    assert errata("show", copy, "--json").json["changelog"] == []


def test_schemas_are_printed_and_written(errata: Errata, here: Path) -> None:
    document = errata("sheet", "schema").json
    assert document["properties"]["gates"]
    assert errata("sheet", "schema", "facts").json["type"] == "array"
    assert errata("sheet", "schema", "fact").json["required"] == ["id", "prompt", "target"]
    assert errata("sheet", "schema", "toml").code == 2
    done = errata("sheet", "schema", "--out", "schemas")
    assert done.code == 0
    assert len(list((here / "schemas").iterdir())) == 3
    assert json.loads((here / "schemas" / "errata.schema.json").read_text()) == document
