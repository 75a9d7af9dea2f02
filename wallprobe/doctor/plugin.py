"""Checks of plugins: every entry point loads and gives what its group takes, under a name of its own, and each part keeps its protocol."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe import plugins
from wallprobe.claims.ledger.claim import Area
from wallprobe.doctor import drawn, parts
from wallprobe.doctor.check import Check, hold, made
from wallprobe.errors import UnknownNameError
from wallprobe.hooks.interchange.reads import Read
from wallprobe.hooks.registry import Instrument
from wallprobe.plugins import callables, check_part, one_or_several
from wallprobe.tasks.task import Task
from wallprobe.training.wall.conditions import Condition

Named = Mapping[str, Any]
Asked = Iterable[tuple[str, Callable[[], str | None]]]


def _tasks(value: Any) -> Named:
    found = (value,) if isinstance(value, type) else tuple(value().values())
    wrong = [one for one in found if not (isinstance(one, type) and issubclass(one, Task))]
    if wrong:
        raise TypeError(f"{wrong[0]!r} is no subclass of Task")
    return {one.name: one for one in found}


def _several(wanted: type[Any]) -> Callable[[Any], Named]:
    return lambda value: {one.name: one for one in one_or_several(wanted)(value)}


# Of each group: what stands behind a loaded entry point, by name, and the checks of one of them.
KINDS: Mapping[str, tuple[Callable[[Any], Named], Callable[[str, Any], Asked]]] = MappingProxyType(
    {
        "wallprobe.tasks": (_tasks, parts.task),
        "wallprobe.conditions": (_several(Condition), parts.condition),
        "wallprobe.signals": (callables, drawn.signal),
        "wallprobe.routes": (callables, drawn.route),
        "wallprobe.instruments": (_several(Instrument), parts.instrument),
        "wallprobe.estimators": (callables, drawn.estimator),
        "wallprobe.reads": (_several(Read), drawn.read),
        "wallprobe.interventions": (callables, drawn.intervention),
        "wallprobe.claims": (lambda value: {(area := check_part(value(), Area)).name: area}, parts.area),
    }
)
EXHIBITS, CLAIMS = "wallprobe.exhibits", "wallprobe.claims"


def distributions() -> tuple[str, ...]:
    """Every installed distribution that has an entry point here, wallprobe itself first."""
    found = {_owner(entry) for group in plugins.GROUPS for entry in plugins.entries(group)}
    return tuple(sorted(found, key=lambda name: (name != "wallprobe", name)))


def examine_plugins(name: str | None = None, *, runs: Path | None = None, results: Path | None = None) -> Iterator[Check]:
    """The checks of every entry point of one distribution, or of all.

    Args:
        name: of the distribution; None for every installed one.
        runs: run store, of which claims are judged.
        results: result store, whose newest Result of an exhibit's kind is drawn.

    Returns:
        The checks, group by group.

    Raises:
        UnknownNameError: if no such distribution is a plugin; the message lists those there are.
    """
    known, stores = distributions(), parts.Stores(runs, results)
    if name is not None and normal(name) not in map(normal, known):
        raise UnknownNameError(f"no plugin named '{name}'; there are: {', '.join(known)}")
    for group in plugins.GROUPS:
        taken = _Taken()
        for entry in plugins.entries(group):
            asked = name is None or normal(_owner(entry)) == normal(name)
            if asked:
                yield from _entry(group, entry, taken, stores)
            else:
                taken.note(group, entry)


def normal(name: str) -> str:
    """A distribution's name as it is compared."""
    return name.lower().replace("_", "-").replace(".", "-")


def _owner(entry: EntryPoint) -> str:
    if entry.dist is not None:
        return str(entry.dist.name)
    return entry.value.partition(":")[0].partition(".")[0]


def _called(group: str, entry: EntryPoint) -> str:
    return f"{_owner(entry)}: {group.removeprefix('wallprobe.')} {entry.name} ({entry.value})"


class _Taken:
    """Names of entry points and of parts of one group, each with whose it is: the first of a name is the one that is used."""

    def __init__(self) -> None:
        self.entries, self.parts = dict[str, str](), dict[str, str]()

    def entry(self, name: str, of: str) -> str:
        """Take an entry point's name."""
        return self._take(self.entries, name, of)

    def part(self, name: str, of: str) -> str:
        """Take a part's name."""
        return self._take(self.parts, name, of)

    def _take(self, names: dict[str, str], name: str, of: str) -> str:
        hold(name not in names, f"{names.get(name)} has the name '{name}' too, and is used instead")
        names[name] = of
        return ""

    def note(self, group: str, entry: EntryPoint) -> None:
        """Note the names that an entry point takes that is not looked at; a broken one takes none."""
        try:
            found = {} if group == EXHIBITS else KINDS[group][0](entry.load())
        except Exception:  # told where that distribution is looked at
            return
        self.entries.setdefault(entry.name, _called(group, entry))
        for name in found:
            self.parts.setdefault(name, _called(group, entry))


def _entry(group: str, entry: EntryPoint, taken: _Taken, stores: parts.Stores) -> Iterator[Check]:
    """The checks of one entry point."""
    of, loaded = _called(group, entry), list[Any]()
    yield (check := made(of, "loads", lambda: loaded.append(entry.load()) or ""))  # type: ignore[func-returns-value]
    if not check.passed:
        return
    yield made(of, "its name is free", partial(taken.entry, entry.name, of))
    if group == EXHIBITS:
        for what, asked in parts.exhibit(entry.name, loaded[0], stores):
            yield made(of, what, asked)
        return
    unfold, checks = KINDS[group]
    if group == CLAIMS:
        checks = partial(parts.area, stores=stores)
    found: dict[str, Any] = {}
    yield (check := made(of, "gives what its group takes", lambda: found.update(unfold(loaded[0])) or ", ".join(found)))
    if not check.passed:
        return
    for name, part in found.items():
        yield made(of, f"{name}: its name is free", partial(taken.part, name, of))
        for what, asked in checks(name, part):
            yield made(of, f"{name}: {what}", asked)
