"""Every option that commands share, declared once, and dataclasses unfolded into options.

A command takes a dataclass by name, such as `place: Place`; typer sees that dataclass's fields in its place. A field is an option
where its type is one of the aliases here, or where it carries `metadata={"option": "--name", "help": ...}`: the second way is for
dataclasses of the floors below, which know nothing of typer. Any other field keeps its default.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer

from wallprobe.cli.checks import check

if TYPE_CHECKING:
    from wallprobe.hooks.attach.prompt_sets import PromptSet
    from wallprobe.hooks.attach.subjects import Wanted
    from wallprobe.models import Loaded

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else there.")]
Runs = Annotated[Path | None, typer.Option("--runs", envvar="WALLPROBE_RUNS", help="Run store.", show_default="./runs")]
Results = Annotated[Path | None, typer.Option("--results", envvar="WALLPROBE_RESULTS", help="Result store.", show_default="./results")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]

RunNames = Annotated[list[str], typer.Argument(help="Runs: c0, p5@1337, or a run's folder.", metavar="RUN...")]
Models = Annotated[list[str], typer.Argument(help="Run names, hub ids, local folders or .gguf files.", metavar="MODEL...")]
Checkpoints = Annotated[
    list[str], typer.Argument(help="Run names or folders, hub ids, local folders or .gguf files; a table row each.", metavar="MODEL...")
]

Labels = Annotated[
    Path | None,
    typer.Option("--labels", help='Labelled text, JSON Lines of {"text" or "tokens", "label", "index"}; a list of labels is one a token.'),
]

Layers = Annotated[str, typer.Option("--layer", help="Layer, list of layers (0,3,5), or all.")]
Site = Annotated[str, typer.Option("--site", help="resid_pre, resid_mid, resid_post, attn_out, mlp_out or z.")]
Sequences = Annotated[int, typer.Option("--sequences", help="Fresh sequences to measure on.", min=2)]
Seed = Annotated[int, typer.Option("--seed", help="Seed of whatever is drawn at random.")]
Estimators = Annotated[
    str | None,
    typer.Option("--estimators", help="Names, commas between, options behind colons: bp,spsa:directions=4.", show_default="by model"),
]
Reference = Annotated[str | None, typer.Option("--reference", help="What the others are held to.", show_default="the first")]

SEEDS = typer.Option("--seeds", help="How many (3: 42, 1337, 2024), or which (42,7).")
Seeds = Annotated[str, SEEDS]
SeedsIfAny = Annotated[str | None, SEEDS]
Jobs = Annotated[int | None, typer.Option("--jobs", help="Runs at once.", show_default="one a core", min=1)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there of these runs.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Optimiser steps instead of the preset's.", min=1)]
Engine = Annotated[str, typer.Option("--engine", help="local (worker processes) or ray ($RAY_ADDRESS, else one on this machine).")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown page.")]


@dataclass(frozen=True)
class Stores:
    """Where runs and Results are, and whether a command prints JSON."""

    runs: Runs = None
    results: Results = None
    json: Json = False


@dataclass(frozen=True)
class OnDevice:
    """What computes."""

    device: Device = "auto"

    def pick(self) -> str:
        """The torch device.

        Raises:
            ConfigError: where it cannot be used here.
        """
        from wallprobe import models

        return models.pick_device(self.device)


@dataclass(frozen=True)
class Place(Stores, OnDevice):
    """What a command that measures ends with. Fields of the last base come first."""


@dataclass(frozen=True)
class Sources:
    """Prompts that models are read on."""

    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="seed4 (default), single, ffn8, mixed, a .txt, .jsonl or .csv file, or datasets:ID. Not for runs."),
    ] = None
    column: Annotated[str | None, typer.Option("--column", help="Column of a table that holds the prompts.")] = None
    limit: Annotated[int | None, typer.Option("--limit", help="Prompts to read at most.", min=1)] = None

    def __post_init__(self) -> None:
        if self.column is not None and self.prompts is None:
            from wallprobe.errors import ConfigError

            raise ConfigError(f"--column {self.column} is of a table that --prompts names; give that too, or leave it out")

    def __iter__(self) -> Iterator[Any]:
        """Prompts, column, limit."""
        return iter((self.prompts, self.column, self.limit))

    def check(self) -> None:
        """Tell of a bad file before half a minute of loading.

        Raises:
            WallprobeError: for a file or set that cannot be read.
        """
        from wallprobe.hooks.attach.prompt_sets import read_texts

        if self.prompts is not None:
            read_texts(*self)

    def of(self, loaded: "Loaded") -> "PromptSet":
        """The prompts in a model's tokens."""
        from wallprobe.hooks.attach.prompt_sets import prompt_set

        return prompt_set(loaded, self.prompts, column=self.column, limit=self.limit)


@dataclass(frozen=True)
class Memory:
    """Whether a model is read block by block."""

    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="One block in memory at a time.", show_default="where it does not fit")
    ] = None
    max_ram: Annotated[
        str | None, typer.Option("--max-ram", help="Memory to stay within, such as 8GiB.", show_default="4/5 of what is free")
    ] = None


@dataclass(frozen=True)
class Sample:
    """What a diagnostic reads a checkpoint on."""

    prompts: Annotated[str | None, typer.Option("--prompts", help="mixed (default), seed4, a .txt, .jsonl or .csv file. Not for runs.")] = (
        None
    )
    text: Annotated[str | None, typer.Option("--text", help="Cut windows from this text file instead. Not for runs.")] = None
    batches: Annotated[int, typer.Option("--batches", help="Batches to estimate on.")] = 4
    size: Annotated[int | None, typer.Option("--size", help="Sequences a batch.", show_default="32 of a task, 4 windows, all prompts")] = (
        None
    )
    length: Annotated[int | None, typer.Option("--length", help="Tokens of a window of text.", show_default="64")] = None
    seed: Seed = 0

    def wanted(self) -> "Wanted":
        """The same for `hooks.attach.subjects`; a file that is not there is told before a model is loaded."""
        from wallprobe.hooks.attach.prompt_texts import read_texts
        from wallprobe.hooks.attach.subjects import Wanted, read_text

        made = Wanted(self.batches, self.size, self.length, self.prompts, self.text, seed=self.seed)
        if self.text is not None:
            read_text(self.text)
        if self.prompts is not None:
            read_texts(self.prompts)
        return made


@dataclass(frozen=True)
class OneBatch(Sample):
    """The same for what looks at one batch."""

    batches: int = 1


@dataclass(frozen=True)
class OwnBatch(OneBatch):
    """The same for what reads runs alone, on their own text."""

    prompts: None = None
    text: None = None
    length: None = None


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass spread out into that dataclass's options, in their order.

    Args:
        command: its dataclass parameters are keyword-only and have no default.

    Returns:
        What typer is given: it takes the options one by one and calls `command` with the dataclasses.
    """
    signature = inspect.signature(command, eval_str=True)
    shown: list[inspect.Parameter] = []
    folded: dict[str, tuple[type[Any], Mapping[str, inspect.Parameter]]] = {}
    for name, parameter in signature.parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            folded[name] = kind, options_of(kind)
            shown += folded[name][1].values()
        else:
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    declared = {parameter.name: parameter for parameter in shown}

    @wraps(command)
    def call(**given: Any) -> None:
        check(given, declared)
        made = {name: kind(**{option: given.pop(option) for option in options}) for name, (kind, options) in folded.items()}
        command(**given, **made)

    call.__annotations__ = {parameter.name: parameter.annotation for parameter in shown} | {"return": None}
    vars(call)["__signature__"] = signature.replace(parameters=shown)
    return call


@cache
def options_of(kind: type[Any]) -> Mapping[str, inspect.Parameter]:
    """A dataclass's fields that are options, as typer wants parameters."""
    found = {field.name: _annotation(field) for field in fields(kind)}
    defaults = {field.name: field.default for field in fields(kind)}
    only = inspect.Parameter.KEYWORD_ONLY
    return {
        name: inspect.Parameter(name, only, default=defaults[name], annotation=annotation)
        for name, annotation in found.items()
        if annotation is not None
    }


def _annotation(field: "Field[Any]") -> Any:
    """The annotation of an option; None for a field that is none."""
    if "option" in field.metadata:
        told = dict(field.metadata)
        return Annotated[field.type, typer.Option(told.pop("option"), **told)]
    return field.type if get_origin(field.type) is Annotated else None
