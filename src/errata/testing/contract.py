"""What every editor owes, as one class of tests: for errata's own editors and for plug-ins.

The bodies state it; nothing here knows a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch

from errata.case import Edit
from errata.config import settings_from
from errata.editors import editors, get_editor
from errata.editors.base import Editor
from errata.editors.facts import FACTS
from errata.errors import EditError, ErrataError, ModelError, PatchError
from errata.model.lm import LM
from errata.patch import Dense, LowRank, Patch
from errata.patch.export import to_lora, to_merged
from errata.patch.places import parameter_of
from errata.testing.measured import (
    blocks_of,
    distance,
    equal,
    likelihood,
    logits,
    low_rank,
    snapshot,
    tensors,
)
from errata.testing.models import (
    DEVICE,
    EDITS,
    GROUPS,
    MODELS,
    gpt2,
    tiny_lm,
    tiny_tokenizer,
)

TOGETHER = 1e-8
"""Float64: groups edited together against one by one; Adam's first steps amplify rounding."""
SAVED = 0.0
"""A patch from disk is the patch: not one bit may differ."""

Make = Callable[..., Editor]


class EditorContract:
    """Tests of one editor; inherit from it in a file that pytest collects.

    ```python
    class TestNudge(EditorContract):
        name = "nudge"
        settings = {"steps": 6}
    ```

    The editor has to be installed, since its registration is tested too. It edits tiny random
    models (GPT-2 and Qwen3, three blocks, a width of 32); whatever it needs beside them belongs
    into `settings`, or into a fixture `make` that replaces the one below.

    Attributes:
        name: Name under which the editor is registered.
        settings: Settings for tiny models: few steps, a layer that exists.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(name="name")
    def _name(self) -> str:
        return type(self).name

    @pytest.fixture(params=MODELS)
    def kind(self, request: pytest.FixtureRequest) -> str:
        """Architecture of the tiny model."""
        return request.param

    @pytest.fixture
    def make(self, name: str) -> Make:
        """Return what builds the editor, with further settings."""
        return lambda **further: get_editor(name, {**self.settings, **further})

    @pytest.fixture(autouse=True)
    def _files_of_its_own(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Keep what is made for tiny models out of the user's cache, for all tests at once."""
        folder = tmp_path_factory.getbasetemp() / "errata-cache"
        monkeypatch.setenv("ERRATA_CACHE", str(folder))

    def check_taken(self, name: str, before: float, after: float) -> None:
        """Say what an edit does to the targets' mean log-likelihood, summed over the groups.

        On average: keys of a random model are alike, so one edit may be spoilt by its own other
        tokens.
        """
        assert after > before

    # ---------------------------------------------------------------------- the model

    def test_the_model_is_what_it_was(self, name: str, kind: str, make: Make) -> None:
        lm = tiny_lm(kind, "float32")
        logits(lm)
        before = snapshot(lm)
        make().edit(lm, GROUPS)
        make().edit(lm, GROUPS, after=low_rank(lm))
        after = snapshot(lm)
        for key, value in before.items():
            assert equal(value, after[key]), key

    def test_the_model_is_what_it_was_after_a_failure(
        self, name: str, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lm = tiny_lm("gpt2", "float32")
        editor = make()
        before = snapshot(lm)
        calls = 0
        original = LM.run

        def fails(self: LM, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 12:
                raise MemoryError
            return original(self, *args, **kwargs)

        monkeypatch.setattr(LM, "run", fails)
        try:
            editor.edit(lm, GROUPS, after=low_rank(lm))
        except MemoryError:
            pass
        monkeypatch.undo()
        after = snapshot(lm)
        for key, value in before.items():
            assert equal(value, after[key]), key

    # ---------------------------------------------------------------------- the patches

    def test_one_patch_per_group(self, name: str, kind: str, make: Make) -> None:
        """Each says what it is of, and writes into no block that its editor does not name."""
        lm = tiny_lm(kind)
        editor = make()
        named = make().edited_layers(lm)
        patches = editor.edit(lm, GROUPS)
        assert [list(patch.edits) for patch in patches] == [editor.meant(lm, own) for own in GROUPS]
        for patch in patches:
            assert patch.meta["editor"] == name
            assert patch.fingerprint == lm.fingerprint
            patch.check(lm)
            patch.check_finite()
            written = set().union(*(blocks_of(lm, change) for change in patch.changes))
            assert named is None or written <= set(named)
        assert make().edit(lm, []) == []

    def test_edits_take(self, name: str, kind: str, make: Make) -> None:
        lm = tiny_lm(kind)
        before = after = 0.0
        for group, patch in zip(GROUPS, make().edit(lm, GROUPS), strict=True):
            before += likelihood(lm, group)
            with patch.applied(lm):
                after += likelihood(lm, group)
        self.check_taken(name, before, after)

    def test_together_is_one_by_one(self, name: str, kind: str, make: Make) -> None:
        lm = tiny_lm(kind)
        after = [None, low_rank(lm), low_rank(lm, 1)]
        together = make().edit(lm, GROUPS, after=after)
        for i, group in enumerate(GROUPS):
            alone = make().edit_one(lm, group, after=after[i])
            for a, b in zip(tensors(together[i]), tensors(alone), strict=True):
                assert distance(a, b) <= TOGETHER * distance(b)
            torch.testing.assert_close(
                logits(lm, together[i]), logits(lm, alone), rtol=TOGETHER, atol=TOGETHER
            )

    def test_it_is_deterministic(self, name: str, make: Make) -> None:
        lm = tiny_lm("qwen3", "float32")
        one, again = make().edit(lm, GROUPS), make().edit(lm, GROUPS)
        for a, b in zip(one, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
            # when it was made differs
            assert {**a.meta, "made": None} == {**b.meta, "made": None}

    def test_an_earlier_patch_is_contained(self, name: str, kind: str, make: Make) -> None:
        lm = tiny_lm(kind)
        after = low_rank(lm)
        kept = [tensor.clone() for tensor in tensors(after)]
        editor = make()
        (patch,) = editor.edit(lm, GROUPS[1:2], after=after)
        assert patch.changes[: len(after.changes)] == after.changes
        assert patch.edits == (*after.edits, *editor.meant(lm, GROUPS[1]))
        assert all(torch.equal(x, y) for x, y in zip(tensors(after), kept, strict=True))

    def test_an_earlier_patch_that_cannot_be_stacked(self, name: str, make: Make) -> None:
        lm = tiny_lm("gpt2")
        delta = 0.01 * torch.randn(
            parameter_of(lm, "transformer.wte.weight").shape,
            generator=torch.Generator().manual_seed(0),
            dtype=torch.float64,
        )
        after = Patch.for_model(lm, [Dense("transformer.wte.weight", delta)], editor="hand")
        patches = make().edit(lm, GROUPS[:2], after=[after, None])
        assert patches[0].changes[0] is after.changes[0]
        plain = make().edit_one(lm, GROUPS[1])
        for a, b in zip(tensors(patches[1]), tensors(plain), strict=True):
            assert distance(a, b) <= TOGETHER * distance(b)

    def test_saved_and_loaded_it_is_the_same(
        self, name: str, kind: str, make: Make, tmp_path: Path
    ) -> None:
        lm = tiny_lm(kind, "float32")
        patch = make().edit_one(lm, GROUPS[1])
        loaded = Patch.load(patch.save(tmp_path / "patch"))
        torch.testing.assert_close(logits(lm, loaded), logits(lm, patch), rtol=SAVED, atol=SAVED)
        assert loaded.edits == patch.edits
        assert settings_from(editors.load(name).Config, loaded.meta["config"]) is not None

    def test_a_patch_out_of_a_file_is_gone_on_with(
        self, name: str, make: Make, tmp_path: Path
    ) -> None:
        """What a run that was stopped goes on with lies in a file, and not where the model is."""
        lm, editor = tiny_lm("gpt2", "float32"), make()
        first = editor.edit_one(lm, GROUPS[0])
        loaded = Patch.load(first.save(tmp_path / "patch"))
        on, again = (editor.edit_one(lm, GROUPS[1], after=patch) for patch in (first, loaded))
        assert on.edits == again.edits
        torch.testing.assert_close(logits(lm, again), logits(lm, on), rtol=SAVED, atol=SAVED)

    def test_undo_is_exact(self, name: str, kind: str, make: Make) -> None:
        lm = tiny_lm(kind, "bfloat16")
        patch = make().edit_one(lm, GROUPS[1])
        before, was = snapshot(lm), logits(lm)
        logits(lm, patch)
        assert equal(snapshot(lm)["weights"], before["weights"])
        assert torch.equal(logits(lm), was)

    def test_patches_export_as_their_editor_says(
        self, name: str, make: Make, tmp_path: Path
    ) -> None:
        """What an editor says its patches can be exported as is what exporting does."""
        lm = tiny_lm("qwen3")
        patch = make().edit_one(lm, EDITS[:1])
        allowed = editors.load(name).exports
        for form, export in (("lora", to_lora), ("merged", to_merged)):
            folder = tmp_path / form
            if form in allowed:
                export(lm, patch, folder)
                assert any(folder.glob("*.safetensors"))
                continue
            with pytest.raises(PatchError) as caught:
                export(lm, patch, folder)
            assert not folder.exists()
            assert len(caught.value.message) > 40  # says why

    # ---------------------------------------------------------------------- what is refused

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_nan_weights_are_refused(self, name: str, make: Make, bad: float) -> None:
        model: Any = gpt2().to(DEVICE)  # pyright: ignore[reportArgumentType]
        lm = LM(model, tiny_tokenizer(), name="broken")
        with torch.no_grad():
            model.transformer.h[1].mlp.c_proj.weight[3, 2] = bad
        with pytest.raises((EditError, ModelError), match="NaN"):
            make().edit(lm, GROUPS)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_nan_update_is_refused(
        self, name: str, make: Make, monkeypatch: pytest.MonkeyPatch, bad: float
    ) -> None:
        lm, editor = tiny_lm("gpt2"), make()
        site = lm.site(1)
        broken = LowRank(site.path, torch.full((site.d_out, 1), bad), torch.ones(1, site.d_in))
        monkeypatch.setattr(editor, "edit_groups", lambda lm, groups, before: [Patch((broken,))])
        before = snapshot(lm)
        with pytest.raises(EditError, match="NaN or infinite"):
            editor.edit(lm, GROUPS[:1])
        assert equal(snapshot(lm)["weights"], before["weights"])

    def test_an_empty_group_is_refused(self, name: str, make: Make) -> None:
        with pytest.raises(EditError, match="group 1 is empty"):
            make().edit(tiny_lm("gpt2"), [EDITS[:1], []])

    def test_contradictions_are_refused(self, name: str, make: Make) -> None:
        """Two answers to one prompt in one call; named, unless a setting says to go on."""
        first, other = EDITS[0], replace(EDITS[0], target="Paris")
        with pytest.raises(EditError) as caught:
            make().edit(tiny_lm("gpt2"), [[first, EDITS[1], other]])
        for text in (first.prompt, first.target, other.target):
            assert repr(text) in caught.value.message
        assert caught.value.edits == (other,)
        # in groups of their own they are no contradiction, and neither is one fact twice
        assert len(make().edit(tiny_lm("gpt2"), [[first], [other]])) == 2
        make().check_together([first, replace(first, target=f" {first.target}")])

    def test_contradictions_are_carried_out_where_the_setting_says_so(
        self, name: str, make: Make
    ) -> None:
        field = editors.load(name).Config.model_fields.get("conflicts")
        for way in () if field is None else get_args(field.annotation):
            if way != "refuse":
                make(conflicts=way).check_together([EDITS[0], replace(EDITS[0], target="Paris")])

    @pytest.mark.parametrize(
        "edit",
        [Edit("The capital of France is", "Rome"), Edit("It is", "Rome", subject="France")],
        ids=["none", "elsewhere"],
    )
    def test_a_missing_subject_is_refused_where_it_is_needed(
        self, name: str, make: Make, edit: Edit
    ) -> None:
        if "subject" in editors.load(name).needs:
            with pytest.raises(EditError, match="subject"):
                make().edit(tiny_lm("gpt2"), [[edit]])
        else:
            assert len(make().edit(tiny_lm("gpt2"), [[edit]])) == 1

    def test_earlier_patches_have_to_fit(self, name: str, make: Make) -> None:
        lm = tiny_lm("gpt2")
        with pytest.raises(EditError, match="2 earlier patches for 3 groups"):
            make().edit(lm, GROUPS, after=[None, None])
        with pytest.raises(PatchError):
            make().edit(lm, GROUPS, after=low_rank(tiny_lm("qwen3")))

    # ---------------------------------------------------------------------- what is said about it

    def test_it_introduces_itself(self, name: str) -> None:
        cls, entry = editors.load(name), editors.entry(name)
        assert issubclass(cls, Editor)
        assert cls.name == name
        for fact in FACTS:  # literals, readable without an import
            assert entry.facts.get(fact) == getattr(cls, fact), f"{fact} is no literal"
        assert set(cls.needs) <= {"subject", "moments", "training"}
        assert cls.batch in ("joint", "in turn", "memory")
        assert cls.sequence in ("adds", "grows")
        assert isinstance(cls.sequential, bool)
        assert set(cls.exports) <= {"lora", "merged"}
        assert isinstance(cls.title, str)
        assert cls.title
        assert isinstance(cls.paper, str)
        assert entry.summary
        for field, info in cls.Config.model_fields.items():
            assert info.description, field

    def test_published_settings_are_settings(self, name: str) -> None:
        cls = editors.load(name)
        assert not cls.published.keys() & cls.presets.keys()
        for backbone, values in {**cls.published, **cls.presets}.items():
            assert backbone == backbone.lower()
            settings_from(cls.Config, values)

    def test_unknown_settings_are_refused(self, name: str, make: Make) -> None:
        with pytest.raises(ErrataError, match="unknown setting"):
            make(no_such_setting=1)
