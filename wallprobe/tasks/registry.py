"""Tasks by name: the built-in ones come through the same entry-point group as a plugin's (`wallprobe.tasks`)."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from wallprobe.errors import ConfigError, UnknownNameError, look_up
from wallprobe.plugins import check_part, collect, distribution, first_of_name
from wallprobe.tasks.backward import BackwardTask
from wallprobe.tasks.heldout import HeldoutTask
from wallprobe.tasks.opaque import OpaqueTask
from wallprobe.tasks.quadratic import QuadraticTask
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.shuffled import ShuffledTask
from wallprobe.tasks.sized import LengthTask, ModulusTask
from wallprobe.tasks.task import Task
from wallprobe.tasks.text import NAME as TEXT

PLUGIN = "plugin"  # key of a manifest's task


def built_in() -> Mapping[str, type[Task]]:
    """The recurrence and its variants, by name."""
    classes = (RecurrenceTask, QuadraticTask, BackwardTask, OpaqueTask, ShuffledTask, ModulusTask, LengthTask, HeldoutTask)
    return {task.name: task for task in classes}


def tasks() -> Mapping[str, type[Task]]:
    """Every registered task's class by name: an entry point is such a class, or a function that returns a mapping of them.

    The built-in ones win a clash.
    """
    return first_of_name(collect("wallprobe.tasks", _unfold))


def _unfold(value: Any) -> Iterable[type[Task]]:
    for task in (value,) if isinstance(value, type) else value().values():
        if not issubclass(check_part(task, type), Task):
            raise TypeError(f"{task!r} is no subclass of Task")
        yield task


def get_task(name: str, **options: Any) -> Task:
    """The task of that name with these fields.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
        ConfigError: for a field it does not have, or a value it refuses.
    """
    task = look_up("task", name, tasks())
    _check(task, options)
    return task(**options)


def from_manifest(entry: Mapping[str, Any]) -> Task:
    """The task of a run's manifest entry `task`; without a name it is the recurrence.

    Raises:
        UnknownNameError, ConfigError: as `get_task`, naming the plugin that brought the task where the run was made; for a run of text,
            whose exact answer nobody knows.
    """
    if entry.get("name") == TEXT:
        raise ConfigError("this run reads text, which has no exact answer to compare with; use triangulate, lr-sweep, branches or mixing")
    name = str(entry.get("name", RecurrenceTask.name))
    if PLUGIN in entry and name not in tasks():
        plugin = entry[PLUGIN]
        raise UnknownNameError(f"no task named '{name}': the run was trained with plugin {plugin}, which is not installed here; install it")
    return get_task(name, **{key: value for key, value in entry.items() if key not in ("name", PLUGIN)})


def to_manifest(task: Task) -> dict[str, Any]:
    """A run's manifest entry `task`: its name, its fields, and the plugin that brought it where it is none of ours."""
    plugin = distribution("wallprobe.tasks", type(task))
    return {"name": task.name, **({PLUGIN: plugin} if plugin else {}), **task.config()}


def change(task: Task, **options: Any) -> Task:
    """The same task with other fields.

    Raises:
        ConfigError: as `get_task`.
    """
    _check(type(task), options)
    return replace(task, **options)


def _check(task: type[Task], options: Mapping[str, Any]) -> None:
    """Refuse fields the task does not have, and values of another type than the default's."""
    defaults = {field.name: field.default for field in fields(task)}
    for option, value in options.items():
        if option not in defaults:
            raise ConfigError(f"task {task.name} has no '{option}'; it takes: {', '.join(defaults)}")
        wanted = type(defaults[option])
        if not (isinstance(value, wanted) or (wanted is float and isinstance(value, int))):
            raise ConfigError(f"{option} '{value}' of task {task.name} is no {wanted.__name__}; the default is {defaults[option]}")


def parse_task(text: str, own: Task | None = None) -> Task:
    """Read `quadratic`, or `heldout-prefix:split=held,bucket=2`; a name left out, or that of `own`, keeps the other fields of `own`.

    Raises:
        UnknownNameError, ConfigError: as `get_task`, or for text that is not field=value.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--task '{text}' is not NAME or NAME:field=value,field=value; '{part}' has no value")
        options[key.strip()] = _value(value.strip())
    if own is not None and name in ("", own.name):
        return change(own, **options)
    return get_task(name, **options)


def _value(text: str) -> int | float | str:
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def split_name(stem: str, conditions: Container[str], task: Task) -> tuple[str, Task]:
    """The condition and task that a name such as `c0-quadratic` means; a bare condition's task is `task`.

    Raises:
        ConfigError: if the name and `task` disagree.
    """
    if stem in conditions:
        return stem, task
    for name in tasks():
        named = get_task(name)
        condition = stem.removesuffix(named.suffix)
        if condition != stem and condition in conditions:
            if task not in (named, RecurrenceTask()):
                raise ConfigError(f"'{stem}' names task {named.label}, but {task.label} was asked for; give {condition} and one --task")
            return condition, named
    return stem, task
