"""Instruments by name: what `wallprobe measure` runs. The built-in ones come through the same entry-point group as a plugin's.

Those with a command of their own (`wallprobe gains`) say more there; here every instrument has the same options and the same table.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError, look_up
from wallprobe.plugins import collect, first_of_name, one_or_several
from wallprobe.store.results import Result
from wallprobe.store.runs import resolve_run

NEEDS = ("run", "model", "prompts")
SETTABLE = (bool, int, float, str)


@dataclass(frozen=True)
class Instrument:
    """Something that measures a run or a model and returns a Result.

    Attributes:
        name: as typed after `wallprobe measure`.
        measure: called as `needs` says, with keyword options besides; those with a plain default can be set from the shell.
        needs: "run": `measure(run, device=..., **options)`, for runs of the wall alone; "model": `measure(loaded, **options)`;
            "prompts": `measure(loaded, prompts, **options)`.
        summary: one line for tables.
    """

    name: str
    measure: Callable[..., Result]
    needs: str = "model"
    summary: str = ""

    def __post_init__(self) -> None:
        if self.needs not in NEEDS:
            raise ConfigError(f"instrument {self.name}: needs '{self.needs}' is none of {', '.join(NEEDS)}")

    def options(self) -> dict[str, Any]:
        """The options that can be set from the shell, with their defaults."""
        given = inspect.signature(self.measure).parameters.values()
        return {one.name: one.default for one in given if one.name != "device" and isinstance(one.default, SETTABLE)}


def built_in() -> Mapping[str, Instrument]:
    """Our own that take one run or model, by name."""
    from wallprobe.hooks.flow.lens import flow
    from wallprobe.hooks.flow.sheaf import maps
    from wallprobe.hooks.gains.measure import gains
    from wallprobe.hooks.wall.attention import attention
    from wallprobe.hooks.wall.calibration import calibration
    from wallprobe.hooks.wall.geometry import geometry
    from wallprobe.hooks.wall.temperature import temperature
    from wallprobe.training.wall.evaluate import evaluate

    ours = (
        Instrument("eval", evaluate, "run", "error, accuracy and mass by position: where the wall stands"),
        Instrument("attention", attention, "run", "every head's pattern on one sequence"),
        Instrument("geometry", geometry, "run", "where the states behind the wall lie"),
        Instrument("temperature", temperature, "run", "whether any temperature recovers the exact answer"),
        Instrument("calibration", calibration, "run", "whether it is as sure as it should be"),
        Instrument("gains", gains, "prompts", "how loud each sub-layer is"),
        Instrument("flow", flow, "prompts", "what the model would say after each layer"),
        Instrument("maps", maps, "prompts", "restriction maps of attention"),
    )
    return {instrument.name: instrument for instrument in ours}


def instruments() -> Mapping[str, Instrument]:
    """Every registered instrument by name; the built-in ones win a clash."""
    return first_of_name(collect("wallprobe.instruments", one_or_several(Instrument)))


def get_instrument(name: str) -> Instrument:
    """The instrument of that name.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
    """
    return look_up("instrument", name, instruments())


def parse_options(instrument: Instrument, texts: tuple[str, ...]) -> dict[str, Any]:
    """Read `key=value`s as the types of the instrument's defaults.

    Raises:
        ConfigError: for text that is not key=value, an option the instrument does not have, or a value of another type.
    """
    known, found = instrument.options(), dict[str, Any]()
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set '{text}' is not key=value")
        if key not in known:
            raise ConfigError(f"instrument {instrument.name} has no option '{key}'; it takes: {', '.join(known) or 'none'}")
        found[key] = _typed(instrument.name, key, value, known[key])
    return found


def _typed(name: str, key: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{key} '{text}' of instrument {name} is no {type(default).__name__}; the default is {default}") from None


def run_instrument(
    instrument: Instrument,
    source: str,
    options: Mapping[str, Any],
    prompts: tuple[str | None, str | None, int | None] = (None, None, None),
    *,
    device: str = "cpu",
    root: Path | None = None,
) -> Result:
    """Measure one run or model.

    Args:
        instrument: what measures.
        source: run name, hub id, folder or file.
        options: of the instrument.
        prompts: source, column and limit of the prompts, for one that needs them.
        device: torch device.
        root: run store.

    Raises:
        ConfigError: for prompts given to an instrument that takes none.
        InstrumentError: if what it returns is no Result.
        WallprobeError: as loading and the instrument raise.
    """
    from wallprobe.hooks.attach.prompt_sets import prompt_set

    if instrument.needs != "prompts" and any(part is not None for part in prompts):
        raise ConfigError(f"instrument {instrument.name} takes no prompts; leave --prompts, --column and --limit out")
    if instrument.needs == "run":
        run = resolve_run(source, root)
        run.verify()
        found = instrument.measure(run, device=device, **options)
    else:
        loaded = models.load(source, device, root)
        text, column, limit = prompts
        given = [prompt_set(loaded, text, column=column, limit=limit)] if instrument.needs == "prompts" else []
        found = instrument.measure(loaded, *given, **options)
    if not isinstance(found, Result):
        raise InstrumentError(f"instrument {instrument.name} returned {type(found).__name__}, not a Result; nothing stored")
    return found
