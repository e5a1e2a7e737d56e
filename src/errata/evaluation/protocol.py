"""What an evaluation can be asked: one frozen class for Python, the command line and recipes.

The dump of a `Protocol` is the section `protocol` of a run folder's configuration. What is asked
for by a path is compared by content when a run is resumed, see
[`errata.evaluation.configuration.compared`][].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_serializer, field_validator, model_validator

from errata.arguments import expect
from errata.case import check_chat
from errata.config import Settings, did_you_mean, settings_from
from errata.errors import ConfigError, DataError
from errata.evaluation.long import TOKENS as LONG_TOKENS
from errata.evaluation.regimes import Regime, parse_regime
from errata.inspection.limits import parse_limit

if TYPE_CHECKING:
    from errata.evaluation.beyond import BeyondSettings
    from errata.evaluation.robustness import RobustnessSettings

SUITES = ("robustness", "beyond")
_DATA, _LONG = "Data", "Sequences (sequential:N)"
WILD_TOKENS = 50
"""Most tokens of an answer in wild, as published."""

CALLABLE = "python"
"""What `judge` says of a function; `judge_model` is its name then."""

CONTAINS = "contains"
"""What `judge` says of the one that looks whether an accepted answer stands in the text."""


def _field(default: Any, description: str, *, name: str = "", panel: str = "", metavar: str = "",
           **limits: Any) -> Any:  # fmt: skip
    """Describe a setting: its meaning, and how its flag is called and shown."""
    shown = {"flag": name, "panel": panel, "metavar": metavar}
    extra: dict[str, Any] = {key: value for key, value in shown.items() if value}
    return Field(default=default, description=description, json_schema_extra=extra, **limits)


class Protocol(Settings):
    """How edits meet, what is asked of the edited model, and what is measured along the way."""

    regime: str = _field(
        "single", "How edits meet before they are scored", metavar="single|batch:N|sequential:N"
    )
    top_k: int = _field(5, "Rank that counts as a hit", ge=1)
    seed: int = _field(0, "Seed of everything that is drawn", ge=0)
    chat: str = _field(
        "off",
        "Ask in the model's chat: edits and questions are a user's message, rendered by its own "
        "template; --chat alone means user. off: each as its case says",
        metavar="off|user|system+user",
    )  # fmt: skip
    system: str | None = _field(
        None, "The system message, with chat system+user", metavar="TEXT"
    )  # fmt: skip
    suite: str | None = _field(
        None,
        "robustness: ask every case under perturbations instead (random prefix, long context, "
        "rephrased prompt, rephrased and shuffled subject, possessive; whole answers count). "
        "beyond: ask besides a choice among objects of the relation, the negated prompt, and for "
        "the old answer",
        panel=_DATA, metavar="robustness|beyond",
    )  # fmt: skip
    suite_set: dict[str, Any] = _field(
        {}, "A setting of the suite, e.g. text=FILE.txt or words=100", panel=_DATA,
        metavar="KEY=VALUE", validate_default=True,
    )  # fmt: skip
    answers: Literal["forced", "wild", "long"] = _field(
        "forced",
        "forced: answers are scored token by token behind the true ones, as published; wild: also "
        "as the model writes them itself, up to a full stop or newline, exact match; long: as it "
        "writes them up to their end, ROUGE and BLEU",
        name="protocol", metavar="forced|wild|long",
    )  # fmt: skip
    form: Literal["auto", "question", "qa", "chat"] = _field(
        "auto",
        "How wild and long put a question: as it stands, behind an instruction, or in the chat; "
        "auto: in the chat if it ends in a question mark and the model has a template",
        metavar="auto|question|qa|chat",
    )  # fmt: skip
    new_tokens: int | None = _field(
        None, "Most tokens of a free answer; default: 50 in wild, 512 in long", ge=1
    )
    similarity: str | None = _field(
        None,
        "Sentence encoder whose cosine compares long answers with the wanted ones: minilm, mpnet "
        "(from packages), a Hub id or folder, own (the model itself) or lexical",
        metavar="ENCODER",
    )  # fmt: skip
    judge: str | None = _field(
        None,
        "Judges free answers beside exact match: contains (an accepted answer stands in the text), "
        "or an address that speaks OpenAI's chat completions; its key in $ERRATA_JUDGE_KEY",
        metavar="contains|URL",
    )  # fmt: skip
    judge_model: str | None = _field(None, "Model that the endpoint is asked for", metavar="NAME")
    fluency: int = _field(
        0,
        "Also sample texts for every Nth case: fluency and consistency. Published: 1, or 10 for "
        "many edits. Slow; 0 for none",
        metavar="N", ge=0,
    )  # fmt: skip
    references: str | None = _field(
        None,
        "Reference texts for consistency (attribute_snippets.json); default: the world's text, or "
        "the cases' own attribute prompts",
        metavar="FILE",
    )
    batch: int = _field(1, "Edits carried out jointly in one step", panel=_LONG, ge=1)
    ask: int = _field(
        0,
        "Ask the questions of N cases only, evenly spread over all; every case is edited. Whether "
        "thousands of edits hold is told by hundreds. 0: of all cases",
        panel=_LONG, metavar="N", ge=0,
    )  # fmt: skip
    retention: bool = _field(False, "Also score each edit right after it is made", panel=_LONG)
    perplexity: str | None = _field(
        "auto",
        "Text whose perplexity is measured; auto: for pocket held-out sentences of its world, for "
        "other models none",
        panel=_LONG, metavar="FILE|auto|none",
    )  # fmt: skip
    general: tuple[str, ...] = _field(
        (),
        "General ability, by lm-evaluation-harness: sst2, mrpc, cola, rte, nli, mmlu, mmlu_cloze, "
        "dialogue; a task file (.yaml with local data); or world: questions about facts that no "
        "test edits",
        panel=_LONG, metavar="NAME|FILE",
    )  # fmt: skip
    general_data: str | None = _field(
        None,
        "Folder with the data of these tasks, NAME.jsonl each; default: $ERRATA_DATA or its folder "
        "ability, else they are downloaded",
        panel=_LONG, metavar="DIR",
    )  # fmt: skip
    every: int = _field(
        0,
        "Measure perplexity, weight drift, general ability and recall every M batches; 0: before "
        "the first and after the last",
        panel=_LONG, metavar="M", ge=0,
    )  # fmt: skip
    stop_when: str | None = _field(
        None,
        "Stop a sequence when the perplexity of general sentences is N times that of the unedited "
        "model; its other cases count as failed. Default: 10 times for editors that are not made "
        "for sequences, else never",
        panel=_LONG, metavar="perplexity=Nx|never",
    )  # fmt: skip
    details: bool = _field(
        False, "Records also hold probability and rank of every token that is scored"
    )  # fmt: skip
    drop_partial: bool = _field(False, "Leave out a last batch or sequence below N")
    keep_collisions: bool = _field(False, "Keep questions about facts that another case edits")
    bootstrap: int = _field(1000, "Resamples of the cases for confidence intervals; 0: none", ge=0)
    stack_size: int = _field(
        32,
        "Edits evaluated side by side in one forward pass, at most; changes speed and memory, not "
        "numbers",
        name="stack", ge=1,
    )  # fmt: skip

    @field_validator("regime")
    @classmethod
    def _regime(cls, value: str) -> str:
        return str(parse_regime(value))

    @field_validator("perplexity", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        return None if value == "none" else _as_text(value)

    @field_validator("references", "general_data", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        return _as_text(value)

    @field_validator("general", mode="before")
    @classmethod
    def _tasks(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple(_as_text(one) for one in value)
        return () if value is None else (_as_text(value),)

    @field_validator("stop_when")
    @classmethod
    def _limit(cls, value: str | None) -> str | None:
        parse_limit(value)
        return value

    @field_validator("suite")
    @classmethod
    def _suite(cls, value: str | None) -> str | None:
        if value is not None and value not in SUITES:
            raise ConfigError(f"unknown suite {value!r}", did_you_mean(value, SUITES))
        return value

    @field_validator("suite_set")
    @classmethod
    def _suite_set(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Check and complete the settings of the suite, so that the dump says all of them."""
        if info.data.get("suite") is None:
            if value:
                raise ConfigError("suite_set needs a suite", f"Add --suite {' or '.join(SUITES)}")
            return {}
        return _tests(info.data["suite"], value).model_dump(mode="json")

    @field_serializer("suite_set")
    def _plain(self, value: dict[str, Any]) -> dict[str, Any]:
        return dict(value)

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: Any) -> Any:
        """Answers get the published number of tokens, and a judge without a model its own name."""
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        if found.get("new_tokens") is None:
            found["new_tokens"] = LONG_TOKENS if found.get("answers") == "long" else WILD_TOKENS
        if found.get("judge") == CONTAINS and found.get("judge_model") is None:
            found["judge_model"] = CONTAINS  # by it runs are told apart
        return found

    @model_validator(mode="after")
    def _chat(self) -> Protocol:
        try:
            check_chat(self.chat, self.system)
        except DataError as error:
            raise ConfigError(error.message, error.hint) from None
        return self

    @model_validator(mode="after")
    def _judged(self) -> Protocol:
        if self.similarity is not None and self.answers != "long":
            raise ConfigError("similarity compares long answers", "Add --protocol long")
        if self.judge is None and self.judge_model is None:
            return self
        if self.answers != "wild":
            raise ConfigError("a judge reads free answers", "Add --protocol wild")
        if self.judge is None or self.judge_model is None:
            raise ConfigError(
                "a judge is an endpoint and the name of a model there",
                "Example: --judge http://localhost:8000/v1 --judge-model NAME, or --judge contains",
            )
        if self.judge == CONTAINS != self.judge_model:
            raise ConfigError(
                f"the judge contains asks no model, and {self.judge_model!r} is named",
                "Leave out --judge-model.",
            )
        if self.judge not in (CALLABLE, CONTAINS):
            from errata.evaluation.judge import check_url

            check_url(self.judge)
        return self

    @model_validator(mode="after")
    def _sequences_only(self) -> Protocol:
        """Refuse what only sequences have in another regime, where it would silently do nothing."""
        chosen = self.units
        asked = {"batch": self.batch > 1, "general": self.general, "every": self.every}
        asked["stop_when"] = self.stop_when
        for name, given in asked.items():
            if given and chosen.kind != "sequential":
                raise ConfigError(
                    f"{name} belongs to sequences; the regime is {chosen}",
                    f"Example: regime sequential:{max(chosen.size, 100)}. With as many edits per "
                    "batch as in all, a sequence is one batch.",
                )
        return self

    @model_validator(mode="after")
    def _shared_only(self) -> Protocol:
        """Refuse to edit cases for nothing: alone, one that is not asked has no effect."""
        if self.ask and self.units.kind == "single":
            raise ConfigError(
                "ask leaves out questions of cases that are edited with others; the regime is "
                "single, where each is edited alone",
                f"Evaluate fewer cases (--limit {self.ask}), or take sequential:N or batch:N.",
            )
        return self

    @property
    def units(self) -> Regime:
        """The regime, read."""
        return parse_regime(self.regime)

    @property
    def tests(self) -> RobustnessSettings | BeyondSettings | None:
        """The settings of the suite; None without one."""
        return None if self.suite is None else _tests(self.suite, self.suite_set)

    @property
    def limit(self) -> float | None:
        """The limit of `stop_when`, read."""
        return parse_limit(self.stop_when)

    def section(self) -> dict[str, Any]:
        """Return the section `protocol` of a configuration: all but what changes no number."""
        return self.model_dump(mode="json", exclude={"stack_size"})


def _as_text(value: object) -> object:
    return value if value is None or isinstance(value, str) else str(value)


def _tests(suite: str, values: Mapping[str, Any]) -> RobustnessSettings | BeyondSettings:
    from errata.evaluation.beyond import BeyondSettings
    from errata.evaluation.robustness import RobustnessSettings

    kind = BeyondSettings if suite == "beyond" else RobustnessSettings
    return settings_from(kind, values, where=f"suite {suite}")


def protocol_of(
    given: Protocol | Mapping[str, Any] | str | None, settings: Mapping[str, Any]
) -> Protocol:
    """Return a protocol with some settings replaced.

    Args:
        given: The protocol; None: the default; a text: how answers are judged (`wild`).
        settings: Settings by name; they win.

    Raises:
        ConfigError: If a name is unknown or a value out of range.
    """
    if isinstance(given, str):
        given = {"answers": given}
    if given is not None:
        expect(given, (Protocol, Mapping), "the protocol", "a Protocol, or its settings by name")
    if isinstance(given, Protocol):
        if not settings:
            return given
        given = given.model_dump(exclude_unset=True)
    return settings_from(Protocol, {**(given or {}), **settings}, where="protocol")
