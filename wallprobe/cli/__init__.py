"""The command line. Commands import what they need when they run, so that --help needs neither torch nor transformer-lens."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import typer

from wallprobe.cli import (
    ablate,
    attention,
    audit,
    branches,
    calibration,
    checks,
    claims,
    collapse,
    convert,
    doctor,
    endings,
    equilibrium,
    evaluate,
    flow,
    gains,
    gallery,
    geometry,
    interchange,
    lr_sweep,
    maps,
    measure,
    mixing,
    options,
    probe,
    readout,
    reproduce,
    rescale,
    rescue,
    runs,
    scaling,
    temperature,
    train,
    triangulate,
)

COMMANDS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "train": train.train,
        "eval": evaluate.evaluate,
        "runs": runs.runs,
        "convert": convert.convert,
        "interchange": interchange.interchange,
        "readout": readout.readout,
        "ablate": ablate.ablate,
        "rescue": rescue.rescue,
        "attention": attention.attention,
        "gains": gains.gains,
        "scaling": scaling.scaling,
        "flow": flow.flow,
        "maps": maps.maps,
        "rescale": rescale.rescale,
        "geometry": geometry.geometry,
        "temperature": temperature.temperature,
        "calibration": calibration.calibration,
        "probe": probe.probe,
        "measure": measure.measure,
        "audit": audit.group,
        "triangulate": triangulate.triangulate,
        "lr-sweep": lr_sweep.lr_sweep,
        "branches": branches.branches,
        "mixing": mixing.mixing,
        "collapse": collapse.collapse,
        "equilibrium": equilibrium.group,
        "claims": claims.claims,
        "reproduce": reproduce.reproduce,
        "gallery": gallery.group,
        "doctor": doctor.doctor,
    }
)

# Commands of several commands: in `COMMANDS` stands what makes them.
GROUPS = MappingProxyType({"audit": audit.COMMANDS, "equilibrium": equilibrium.COMMANDS, "gallery": gallery.COMMANDS})

TOLD = ("PluginWarning", "ModelCodeWarning", "OtherBytesWarning")  # warnings of ours, one line each

INTERRUPTED = 130  # 128 + SIGINT


def build_app(names: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """The application with these commands; a single one stands for itself, without completion options."""
    app = typer.Typer(
        name="wallprobe",
        no_args_is_help=len(names) > 1,
        pretty_exceptions_enable=False,
        add_completion=len(names) > 1,
    )
    if len(names) > 1:
        app.callback()(_begin)
    for name in names:
        if name in GROUPS:
            app.add_typer(COMMANDS[name](), name=name)
        else:
            app.command(name)(options.unfolded(COMMANDS[name]))
    return app


def _begin(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Does this network carry a rule, or only the answer? Where was the gradient, and what did it buy? How loud is each layer?"""


def _tell_version() -> int:
    from importlib.metadata import version

    sys.stdout.write(f"wallprobe {version('wallprobe')}\n")
    return 0


def main() -> None:
    """Entry point: whatever ends a command early becomes one line on stderr and an exit code (see `endings`)."""
    usual = warnings.formatwarning

    def one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        # By name: importing the class would load importlib.metadata, which --help does without.
        return f"wallprobe: {message}\n" if category.__name__ in TOLD else usual(message, category, filename, lineno, line)

    warnings.formatwarning = one_line
    endings.forgiving()
    try:
        endings.check_folder()
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help page
            error.show()  # type: ignore[attr-defined]
            code = endings.BAD_INPUT
        else:
            code = endings.end(error)
    except KeyboardInterrupt as error:
        code = endings.end(error)
    finally:
        warnings.formatwarning = usual
    raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    """Run what is typed; the exit code."""
    checks.refuse_empty(arguments)
    if arguments[:1] == ["--version"]:
        return _tell_version()
    if arguments and arguments[0] in COMMANDS and "--help" in arguments:
        # Within the group, typer validates the group's own options first, with pydantic: half of the time a help page takes.
        if arguments[0] in GROUPS:
            inner = next((name for name in arguments[1:2] if name in GROUPS[arguments[0]]), None)
            prog = " ".join(["wallprobe", arguments[0], *([inner] if inner else [])])
            return _code(COMMANDS[arguments[0]](inner)(args=["--help"], prog_name=prog, standalone_mode=False))
        return _code(build_app(arguments[:1])(args=["--help"], prog_name=f"wallprobe {arguments[0]}", standalone_mode=False))
    return _code(build_app()(args=arguments, prog_name="wallprobe", standalone_mode=False))


def _code(returned: Any) -> int:
    """An exit code out of what typer returns: what a command returns, or the code it was left with; an interrupt is one of these."""
    if returned == endings.INTERRUPTED:
        raise KeyboardInterrupt
    return returned if isinstance(returned, int) else 0
