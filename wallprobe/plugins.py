"""Entry points, found lazily: a plugin that fails to load, or gives what its group does not take, is named in a warning and skipped."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

GROUPS = (
    "wallprobe.tasks",
    "wallprobe.conditions",
    "wallprobe.signals",
    "wallprobe.routes",
    "wallprobe.instruments",
    "wallprobe.estimators",
    "wallprobe.reads",
    "wallprobe.interventions",
    "wallprobe.exhibits",
    "wallprobe.claims",
)
# Ours of the groups that came later, for an editable install whose metadata is older than the code.
LATER: Mapping[str, str] = MappingProxyType(
    {
        "wallprobe.signals": "wallprobe.training.wall.signals:built_in_signals",
        "wallprobe.routes": "wallprobe.training.wall.signals:built_in_routes",
        "wallprobe.reads": "wallprobe.hooks.interchange.reads:built_in",
        "wallprobe.interventions": "wallprobe.hooks.attach.interventions:built_in",
    }
)
PICTURES = "wallprobe.pictures"  # what a notebook shows of a Result; the gallery fills it, plugins have exhibits
Part = TypeVar("Part")


class PluginWarning(UserWarning):
    """A plugin that could not be used."""


@functools.cache
def load_group(group: str) -> Mapping[str, Any]:
    """The loaded objects of one entry-point group, by entry-point name; of two with one name, the built-in one.

    Args:
        group: one of `GROUPS`.

    Returns:
        A read-only mapping, the built-in ones first; broken plugins are missing from it and named in a `PluginWarning`.

    Raises:
        ValueError: for a group that wallprobe does not define.
    """
    loaded: dict[str, Any] = {}
    for entry in entries(group):
        if entry.name not in loaded:
            loaded[entry.name] = _load(entry)
    return MappingProxyType({name: value for name, value in loaded.items() if value is not None})


def collect(group: str, unfold: Callable[[Any], Iterable[Part]]) -> list[Part]:
    """What the entry points of a group stand for, in `load_group`'s order, so that the first of one name is the built-in one.

    Args:
        group: one of `GROUPS`.
        unfold: the parts behind one loaded object; whatever it raises is the plugin's fault: that one is named in a
            `PluginWarning` and skipped whole.

    Raises:
        ValueError: as `load_group`.
    """
    return [part for name, value in load_group(group).items() for part in _parts(group, name, value, unfold)]


@runtime_checkable
class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str:
        """As typed."""


NamedPart = TypeVar("NamedPart", bound=Named)


def first_of_name(parts: Iterable[NamedPart]) -> dict[str, NamedPart]:
    """The parts by name; of two with one name, the first."""
    known: dict[str, NamedPart] = {}
    for part in parts:
        known.setdefault(part.name, part)
    return known


def one_or_several(wanted: type[Part]) -> Callable[[Any], Iterable[Part]]:
    """For `collect`: a loaded object is one part, or a function that returns a mapping of them by name."""
    return lambda value: [check_part(one, wanted) for one in ((value,) if isinstance(value, wanted) else value().values())]


def callables(value: Any) -> Mapping[str, Callable[..., Any]]:
    """For groups of plain functions: what an entry point, a function that returns a mapping of them by name, stands for.

    Raises:
        TypeError: for anything else.
    """
    made = dict(value())
    wrong = [name for name, one in made.items() if not isinstance(name, str) or not callable(one)]
    if wrong:
        raise TypeError(f"{wrong[0]!r} is no function by name")
    return made


def named_functions(group: str) -> Mapping[str, Callable[..., Any]]:
    """Every function of such a group by name; the built-in ones win a clash.

    Args:
        group: one of `GROUPS`.
    """
    known: dict[str, Callable[..., Any]] = {}
    for name, one in collect(group, lambda value: callables(value).items()):
        known.setdefault(name, one)
    return known


def _parts(group: str, name: str, value: Any, unfold: Callable[[Any], Iterable[Part]]) -> list[Part]:
    try:
        return list(unfold(value))
    except Exception as error:
        _skip(next(entry for entry in entries(group) if entry.name == name), error, stacklevel=5)
        return []


def distribution(group: str, part: Any) -> str | None:
    """The package that brought a part to a group, by the module it is defined in; None for wallprobe's own."""
    package = str(part.__module__).partition(".")[0]
    if package == __package__:
        return None
    return next(
        (entry.dist.name for entry in entries(group) if entry.dist and entry.value.startswith((f"{package}.", f"{package}:"))), None
    )


def check_part(part: Any, wanted: type[Part]) -> Part:
    """The part itself.

    Raises:
        TypeError: if it is of another type than its group takes.
    """
    if not isinstance(part, wanted):
        raise TypeError(f"{part!r} is no {wanted.__name__}")
    return part


def entries(group: str) -> list[metadata.EntryPoint]:
    """Entry points of a group by name, those of this package first; what they stand for is not loaded.

    Raises:
        ValueError: for a group that wallprobe does not define.
    """
    if group not in (*GROUPS, PICTURES):
        raise ValueError(f"'{group}' is no plugin group; there are: {', '.join(GROUPS)}")

    def place(entry: metadata.EntryPoint) -> tuple[bool, bool, str]:
        return entry.name != "builtin", not entry.value.startswith(f"{__package__}."), entry.name

    found = list(metadata.entry_points(group=group))
    if group in LATER and all(entry.value != LATER[group] for entry in found):
        found.append(metadata.EntryPoint("builtin", LATER[group], group))
    return sorted(found, key=place)


def _load(entry: metadata.EntryPoint) -> Any | None:
    try:
        return entry.load()
    except Exception as error:
        _skip(entry, error, stacklevel=4)
        return None


def _skip(entry: metadata.EntryPoint, error: Exception, stacklevel: int) -> None:
    owner = entry.dist.name if entry.dist else "unknown distribution"
    message = f"plugin {entry.name} of {owner} ({entry.value}) was skipped: {error!r}"
    warnings.warn(message, PluginWarning, stacklevel=stacklevel + 1)
