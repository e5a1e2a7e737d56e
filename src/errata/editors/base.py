"""What every editor is: a pure function from model, groups of edits and patches to patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pydantic import Field

from errata.case import Edit, check_groups
from errata.config import Settings
from errata.editors.base_experts import edit_experts, routed_blocks
from errata.editors.contradictions import refuse_conflicts
from errata.editors.earlier import earlier_patches
from errata.errors import ConfigError, EditError, PatchError
from errata.model.backbones import keys_for
from errata.model.given import expect_model
from errata.model.lm import LM
from errata.model.tokens import find_subject
from errata.patch import Patch
from errata.patch.stack import Stack

Layer = int | Literal["auto"]


@dataclass(frozen=True)
class Cost:
    """What editing takes, for estimates.

    Attributes:
        passes: Passes over an edit's tokens, each as long as a forward pass; one back counts too.
        questions: How much longer questions are under its patches.
        held: Bytes that it keeps beside the model while it edits.
    """

    passes: float = 2.0
    questions: float = 1.0
    held: float = 0.0


TOGETHER = 32
"""Edits side by side that estimates count with."""


class EditorConfig(Settings):
    """Settings of an editor: frozen, every one described, unknown names refused."""


class Conflicts(Settings):
    """The setting of editors that can also carry out edits which contradict each other."""

    conflicts: Literal["refuse", "keep"] = Field(
        default="refuse",
        description="Edits of one call with equal prompts and different targets; keep: they are "
        "carried out as they stand, and spoil each other",
    )


class Editor(ABC):
    """Turns edits into patches; the model is bit-identical afterwards.

    A new editor is one class that sets the attributes below as literals and overrides one method,
    `edit_groups`; that method builds its patches with `make_patch`. Checks, composition with
    earlier patches and the refusal of NaN are done here. Further methods may be overridden:
    `prepare`, `made_of`, `check`, `check_together`, `meant`, `edited_layers`. It is one file (or
    folder) beside this one, or a file of another distribution: docs/plugins.md. `errata.testing`
    tests what it owes.

    Attributes:
        name: Name on the command line.
        title: Name in tables.
        paper: Citation with an arXiv id or address.
        needs: `subject`, `moments` and `training`, as far as they are needed.
        weights: Whether it changes weights.
        batch: What happens to the edits of a group: `joint` (solved together), `in turn` (one after
            another) or `memory` (each becomes an entry).
        sequence: What happens to an earlier patch: `adds` (the new change is added to it) or
            `grows` (its memory grows).
        sequential: Whether it is fit to edit one after another; False: its updates are made for the
            unedited model, and a sequence of them destroys it.
        in_turns: Whether it is meant for many edits at once, and what suits many is not what suits
            one: `errata tune` measures it so.
        exports: What its patches can be exported as by default settings: `lora`, `merged`.
        Config: Class of its settings.
        published: Backbone -> published settings, for `--as-published`.
        presets: Model -> settings that were found for it, not published; taken for that model
            unless others are asked for.
        origins: Setting -> where its value comes from, for those that nobody asked for by name.
        asked: Settings that were asked for by name, where the others may be what suits the model
            once it is loaded (`errata.editors.fitting`); None: all stay as they are.
        settings_from: Where settings come from that were chosen then; empty: there are none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[bool] = True
    batch: ClassVar[str] = "joint"
    sequence: ClassVar[str] = "adds"
    sequential: ClassVar[bool] = True
    in_turns: ClassVar[bool] = False
    exports: ClassVar[tuple[str, ...]] = ("lora", "merged")
    Config: ClassVar[type[EditorConfig]] = EditorConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    asked: frozenset[str] | None = None
    settings_from: str = ""

    def __init__(self, config: EditorConfig | None = None) -> None:
        self.config = self.Config() if config is None else config
        self.origins: Mapping[str, str] = {}

    def ready(self, model: str) -> None:  # noqa: B027 -- optional
        """Look for what is needed beside the model, before minutes go into loading it.

        Args:
            model: Name of the model that will be edited.

        Raises:
            DataError: If a text or file is missing.
        """

    def prepare(self, lm: LM) -> None:  # noqa: B027 -- optional
        """Make what is needed once per model (moments, templates); cached, progress on stderr."""

    def cost(self, lm: LM) -> Cost:
        """Return what an edit takes; here: a pass forward and one back.

        Args:
            lm: The model, or what is known of one that is not there: its name, its number of blocks
                and the widths of their projections.
        """
        return Cost()

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return what results depend on besides model and settings, for the records of a run."""
        return {}

    def edit(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        *,
        after: Patch | Sequence[Patch | None] | None = None,
    ) -> list[Patch]:
        """Edit independent groups; each starts from the same model (and its own earlier patch).

        Args:
            lm: The unedited model; bit-identical afterwards.
            groups: Edits that belong together, for each group.
            after: A patch that is already there: one for all groups, or one per group.

        Returns:
            One patch per group, complete: what was there plus what this edit adds.

        Raises:
            ArgumentError: If a group is no list of edits.
            EditError: If one is empty, a subject is missing, or the update came out NaN or
                infinite.
            ModelError: If the model holds NaN weights.
            PatchError: If `after` belongs to another model.
        """
        expect_model(lm)
        check_groups(groups)
        before = earlier_patches(lm, len(groups), after)
        for group in groups:
            for edit in group:
                self.check(edit)
            self.check_together(group)
        lm.check_finite()
        lm.rounded = False
        if not groups:
            return []
        routed = routed_blocks(self, lm)
        if routed:
            added = edit_experts(self, lm, groups, before, routed)
        else:
            self.prepare(lm)
            added = self.edit_groups(lm, groups, before)
        return [
            self._finish(lm, old, new, group)
            for old, new, group in zip(before, added, groups, strict=True)
        ]

    def edit_one(self, lm: LM, edits: Sequence[Edit], after: Patch | None = None) -> Patch:
        """Edit one group; see `edit`."""
        return self.edit(lm, [edits], after=after)[0]

    @property
    def lasts(self) -> bool:
        """Whether its edits, as it is set, bear others after them; else sequences warn and stop."""
        return self.sequential

    def edited_layers(self, lm: LM) -> tuple[int, ...] | None:
        """Return the blocks that are edited, ascending; here: what its setting says.

        None: it is not known before the edit. Empty: no block is edited.
        """
        chosen = getattr(self.config, "layers", getattr(self.config, "layer", None))
        if chosen is None or chosen == "auto":
            return None if self.weights else ()
        numbers = (chosen,) if isinstance(chosen, int) else chosen
        return tuple(sorted({resolve_layer(lm, number, 0) for number in numbers}))

    @property
    def edits_experts(self) -> bool:
        """Whether it edits single experts of a mixture; most methods need one FFN for all tokens.

        Then `lm.site` is the matrix of the expert that an edit's subject is routed to, and its keys
        are zero at tokens that are not.
        """
        return False

    def check(self, edit: Edit) -> None:
        """Refuse an edit that this editor cannot carry out, before anything is computed.

        Raises:
            EditError: Says what is missing.
        """
        if "subject" not in self.needs:
            return
        if edit.subject is None:
            raise EditError(
                f"{self.name} needs to know the subject of {edit.prompt!r}",
                'Give it: --subject TEXT, or "subject" in the record',
            )
        find_subject(edit.prompt, edit.subject, edit.subject_at)

    def meant(self, lm: LM, edits: Sequence[Edit]) -> list[Edit]:
        """Return what is written for some requests, as patches hold it; here: the requests.

        An editor for which they say something else (`erase`) works the rest out.
        """
        return list(edits)

    def notes(self, lm: LM, edits: Sequence[Edit]) -> list[str]:
        """Return what a user should know of how edits were computed; here: nothing."""
        return []

    def out_of_reach(self, lm: LM, edit: Edit) -> str:
        """Say why no setting of this editor makes an edit hold; empty: nothing is known of that."""
        return ""

    def check_together(self, group: Sequence[Edit]) -> None:
        """Refuse edits that cannot be carried out together, before anything is computed.

        Here: different answers to one prompt, unless the editor has a setting `conflicts` and it
        says otherwise.

        Raises:
            EditError: Says which; its `edits` are those to leave out.
        """
        field = type(self.config).model_fields.get("conflicts")
        if field is None or getattr(self.config, "conflicts", "refuse") == "refuse":
            ways = get_args(field.annotation) if field is not None else ()
            refuse_conflicts(
                group,
                by_subject="subject" in self.needs,
                instead=next((way for way in ways if way != "refuse"), None),
            )

    @abstractmethod
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Return what each group adds to its earlier patch, without that patch.

        The groups are not empty and have passed `check`; `before` has one patch per group.
        """

    def known_settings(self, lm: LM) -> Mapping[str, object]:
        """Return what was published, or found, for this model: what `auto` looks up."""
        return suited(self, keys_for(lm.name, lm.backbone))[1]

    def blocks_from(self, lm: LM) -> str | None:
        """Say where the choice of blocks comes from; None if this editor has none to choose."""
        name = next((n for n in ("layer", "layers") if n in type(self.config).model_fields), None)
        if name is None:
            return None
        if getattr(self.config, name) != "auto":
            return self.origins.get(name, "as asked")
        origin, known = suited(self, keys_for(lm.name, lm.backbone))
        return origin if isinstance(known.get(name), int | tuple) else self.rule_of(lm)

    def rule_of(self, lm: LM) -> str:
        """Say what `auto` follows where nothing was published for a model."""
        return "rule of thumb by depth"

    def _automatic(self, lm: LM, setting: str, rule: int) -> int:
        """Return what `auto` means: the block published for this model, else `rule`."""
        layer = self.known_settings(lm).get(setting, rule)
        return layer if isinstance(layer, int) else rule

    def _automatic_layers(self, lm: LM) -> tuple[int, ...] | None:
        """Return the blocks published for this model, if there are any."""
        layers = self.known_settings(lm).get("layers")
        return layers if isinstance(layers, tuple) else None

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Join the earlier patch and what was added; overridden where the new replaces the old."""
        return before + added

    def _finish(self, lm: LM, before: Patch, added: Patch, group: Sequence[Edit]) -> Patch:
        try:
            added.check_finite()
        except PatchError as error:
            raise EditError(
                f"editing {group[0].prompt!r} gave NaN or infinite values: {error.message}",
                "The model is untouched. A smaller learning rate or another layer may help.",
            ) from None
        return self._compose(lm, before, added)

    def make_patch(
        self, lm: LM, changes: Sequence, edits: Sequence[Edit], **state: object
    ) -> Patch:
        """Build the patch of one group with this editor's name and settings."""
        return Patch.for_model(
            lm, changes, editor=self.name, config=self.config.model_dump(mode="json"),
            edits=tuple(edits), state=state, sources=self.sources(lm),
        )  # fmt: skip

    def sources(self, lm: LM) -> dict[str, str]:
        """Return where the editor's choices come from, for the patch: `blocks_from` and others."""
        found = {"blocks_from": self.blocks_from(lm) or "", "settings_from": self.settings_from}
        return {name: value for name, value in found.items() if value}

    def rule_by_shape(self, lm: LM) -> tuple[str, Mapping[str, object]]:
        """Return settings for a model that none were published for, and what they follow."""
        return "", {}


def suited(editor: Editor | type[Editor], keys: Sequence[str]) -> tuple[str, Mapping[str, object]]:
    """Return the settings in an editor's tables under the first of some keys, and their origin."""
    for key in keys:
        if editor.published.get(key):
            return f"published for {key}", editor.published[key]
        if editor.presets.get(key):
            return f"found for {key}", editor.presets[key]
    return "", {}


def under(lm: LM, patches: Sequence[Patch]) -> Iterator[tuple[list[int], list[int]]]:
    """Put the model under one patch per group, for as many groups at once as can be stacked.

    Yields:
        Numbers of the groups, and for each the patch of the active stack that its rows have to
        name (`Row.patch`): -1 where there is no stack, for want of patches or because the one
        patch is applied in place.
    """
    everyone = list(range(len(patches)))
    if all(patch.is_empty for patch in patches):
        yield everyone, [-1] * len(everyone)
        return
    try:
        stack = Stack(lm, patches)
    except PatchError:  # something that cannot differ by row: one group at a time, in place
        for number, patch in enumerate(patches):
            with patch.applied(lm):
                yield [number], [-1]
        return
    with stack:
        yield everyone, everyone


def resolve_layer(lm: LM, layer: Layer, automatic: int) -> int:
    """Turn a layer setting into a block number.

    Args:
        lm: The model.
        layer: The setting; negative numbers count from the last block.
        automatic: What `auto` means for this model.

    Raises:
        ConfigError: If the model has no such block.
    """
    number = automatic if layer == "auto" else layer
    if not -lm.n_layers <= number < lm.n_layers:
        raise ConfigError(
            f"layer {number} does not exist: {lm.name} has blocks 0 to {lm.n_layers - 1}",
            f"Example: --set layer={lm.n_layers // 3}",
        )
    return number % lm.n_layers
