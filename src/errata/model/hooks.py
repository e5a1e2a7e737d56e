"""What stands around a model while it runs, and the one way to hook it.

```
            Installed, one per model          whoever installs something writes it here,
            ├─ stack    patches side by side  and takes it back; the LM only reads it
            ├─ around_model   contexts, routes
            └─ batch, at: the pass that runs

 hooked(lm, before(module, f), after(module, g))
    1  lm.probe()         trial passes over the model are made before the first hook is there
    2  f and g work at the present depth only
 bare(model)              depth + 1: everything that was installed is silent until it is left
 nested(model)            a pass inside a pass: only hooks that last (of patches) are at work
```

Every hook of errata goes through `hooked`. So no trial pass (where are the blocks? does a cached
prefix continue exactly?) ever meets one: it runs first, and if it runs later, it runs `bare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from errata.model.kept import Kept
    from errata.model.lm import LM
    from errata.model.tokens import Batch
    from errata.patch.around import AroundModel
    from errata.patch.stack import Stack


@dataclass
class Installed:
    """What is installed on one model.

    Attributes:
        stack: The active patches side by side, if there are any.
        around_model: Contexts, routes and networks that see whole rows: no prefix may be cached.
        batch: The batch that runs, if it is known.
        at: The (row, position) pairs whose logits it computes; None: all.
        depth: How many times everything has been lifted.
        applied: How many patches are applied in place: the weights are not the model's own.
        kept: Hidden states that rows may begin from; None: every pass is whole.
        written: By id, the parameters that these have written to, and their own values.
        nested: How many passes the one that runs is inside of.
        versions: By id, how often each parameter had been written to when that was last looked at;
            empty: nothing has been made of them yet.
        foreign: How often writes were found that are not of a patch.
    """

    stack: Stack | None = None
    around_model: list[AroundModel] = field(default_factory=list)
    batch: Batch | None = None
    at: Tensor | None = None
    depth: int = 0
    applied: int = 0
    kept: Kept | None = None
    written: dict[int, tuple[nn.Parameter, Tensor]] = field(default_factory=dict)
    nested: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    foreign: int = 0

    @property
    def nothing(self) -> bool:
        """Whether what the model says is its own: no patch is active on it."""
        return self.stack is None and not self.around_model and not self.applied

    @property
    def inside(self) -> tuple[int, int]:
        """Tells a pass from one inside it, and from one for which everything was lifted."""
        return self.depth, self.nested

    def look(self, model: nn.Module) -> bool:
        """Note how often parameters were written to; whether somebody else did since the last look.

        torch counts in-place writes, those of optimisers and of `load_state_dict` too; a write
        through `.data` is not counted. Weights that lie elsewhere until they are needed are left
        out: what stands in their place changes with every pass.
        """
        now = {id(p): p._version for p in model.parameters() if not p.is_meta}
        found = bool(self.versions) and now != self.versions
        self.versions = now
        self.foreign += found
        return found

    def wrote(self, parameter: nn.Parameter) -> None:
        """Count a write as a patch's: the model's own values are kept, and put back."""
        if id(parameter) in self.versions:
            self.versions[id(parameter)] = parameter._version

    @contextmanager
    def running(self, **known: Any) -> Iterator[None]:
        """Note what is known of a pass (`batch`, `at`) while it runs."""
        earlier = {name: getattr(self, name) for name in known}
        vars(self).update(known)
        try:
            yield
        finally:
            vars(self).update(earlier)

    @contextmanager
    def unwritten(self) -> Iterator[None]:
        """Put the parameters' own values in place for a pass, whatever patches wrote there."""
        written = [(parameter, parameter.data) for parameter, _ in self.written.values()]
        try:
            for parameter, own in self.written.values():
                parameter.data = own
            yield
        finally:
            for parameter, value in written:
                parameter.data = value


_on: WeakKeyDictionary[nn.Module, Installed] = WeakKeyDictionary()


def installed_on(model: nn.Module) -> Installed:
    """Return what is installed on a model, for whoever wraps it: there is one for each model."""
    return _on.setdefault(model, Installed())


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Lift everything that is installed on a model, so that a trial pass sees the model itself."""
    installed = installed_on(model)
    lifted = replace(installed)
    vars(installed).update(vars(Installed(depth=installed.depth + 1)))
    try:
        yield
    finally:
        for name in fields(lifted):
            setattr(installed, name.name, getattr(lifted, name.name))


@contextmanager
def nested(model: nn.Module) -> Iterator[None]:
    """Run passes from inside a pass: patches are at work, what belongs to the outer pass is not.

    Routes are not either: one of them asks.
    """
    installed = installed_on(model)
    with installed.running(nested=installed.nested + 1, batch=None, at=None):
        yield


class Hook(NamedTuple):
    """A function that is called in front of a module or behind it, as torch calls hooks."""

    module: nn.Module
    call: Callable[..., Any]
    ahead: bool
    with_kwargs: bool


def before(module: nn.Module, call: Callable[..., Any], *, with_kwargs: bool = False) -> Hook:
    """Return a hook in front of a module."""
    return Hook(module, call, True, with_kwargs)


def after(module: nn.Module, call: Callable[..., Any], *, with_kwargs: bool = False) -> Hook:
    """Return a hook behind a module."""
    return Hook(module, call, False, with_kwargs)


@contextmanager
def hooked(lm: LM, *hooks: Hook, lasting: bool = False) -> Iterator[None]:
    """Hook modules of the model inside a `with` block; all hooks of errata are installed here.

    Hooks of patches last: they are at work in passes inside a pass as well. Others belong to the
    pass that they were installed for.

    Where the model lies on several devices, hooks see their tensors on the device of the token ids,
    where errata's own are, and what they return goes to the device of their module.
    """
    lm.probe()
    with ExitStack() as handles:
        for hook in hooks:
            call = _at_home(hook.call, lm.device) if lm.spread else hook.call
            call = _at_depth(lm.installed, call, lasting)
            put = hook.module.register_forward_hook
            if hook.ahead:
                put = hook.module.register_forward_pre_hook
            handles.callback(put(call, with_kwargs=hook.with_kwargs).remove)
        yield


def _at_home(call: Callable[..., Any], home: torch.device) -> Callable[..., Any]:
    """Let a hook work on one device, whichever its module is on."""

    def called(module: nn.Module, *given: Any) -> Any:
        there = next(_tensors(given[-1]), None)
        there = next(_tensors(given), None) if there is None else there
        found = call(module, *_moved(given, home))
        return found if found is None or there is None else _moved(found, there.device)

    return called


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _moved(value: Any, device: torch.device) -> Any:
    """Return tensors, also in tuples, lists and plain dictionaries, on a device; others stay."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list, dict):
        if isinstance(value, dict):
            return {name: _moved(part, device) for name, part in value.items()}
        return type(value)(_moved(part, device) for part in value)
    return value


def _at_depth(installed: Installed, call: Callable[..., Any], lasting: bool) -> Callable[..., Any]:
    """Let a hook work only while nothing lifts it; to torch None means that nothing changes."""
    depth, nested = installed.depth, installed.nested

    def called(*given: Any) -> Any:
        here = installed.depth == depth and (lasting or installed.nested == nested)
        return call(*given) if here else None

    return called
