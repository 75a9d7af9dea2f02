"""The command line. Commands import what they need when they run, so that --help needs neither torch nor transformer-lens."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import typer

from wallprobe.cli import (
    ablate,
    attention,
    audit,
    branches,
    calibration,
    claims,
    collapse,
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
from wallprobe.errors import WallprobeError

COMMANDS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "train": train.train,
        "eval": evaluate.evaluate,
        "runs": runs.runs,
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
    }
)

# Commands of several commands: in `COMMANDS` stands what makes them.
GROUPS = MappingProxyType({"audit": audit.COMMANDS, "equilibrium": equilibrium.COMMANDS, "gallery": gallery.COMMANDS})

INTERRUPTED = 130  # 128 + SIGINT


def build_app(names: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """The application with these commands; a single one stands for itself, without completion options."""
    app = typer.Typer(
        name="wallprobe",
        help="Does this network carry a rule, or only the answer? Where was the gradient, and what did it buy? How loud is each layer?",
        no_args_is_help=len(names) > 1,
        pretty_exceptions_enable=False,
        add_completion=len(names) > 1,
    )
    for name in names:
        if name in GROUPS:
            app.add_typer(COMMANDS[name](), name=name)
        else:
            app.command(name)(options.unfolded(COMMANDS[name]))
    return app


def main() -> None:
    """Entry point: a WallprobeError becomes one line on stderr and exit code 2; an interrupt, 130."""
    arguments = sys.argv[1:]
    usual = warnings.formatwarning

    def one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
        # By name: importing the class would load importlib.metadata, which --help does without.
        return f"wallprobe: {message}\n" if category.__name__ == "PluginWarning" else usual(message, category, filename, lineno, line)

    warnings.formatwarning = one_line
    try:
        if arguments and arguments[0] in COMMANDS and "--help" in arguments:
            # Within the group, typer validates the group's own options first, with pydantic: half of the time a help page takes.
            if arguments[0] in GROUPS:
                inner = next((name for name in arguments[1:2] if name in GROUPS[arguments[0]]), None)
                prog = " ".join(["wallprobe", arguments[0], *([inner] if inner else [])])
                COMMANDS[arguments[0]](inner)(args=["--help"], prog_name=prog)
            build_app(arguments[:1])(args=["--help"], prog_name=f"wallprobe {arguments[0]}")
        build_app()()
    except WallprobeError as error:
        sys.stderr.write(f"wallprobe: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer has caught the KeyboardInterrupt and says nothing
            sys.stderr.write("wallprobe: interrupted; run the same command again to go on\n")
        raise
    except KeyboardInterrupt:
        sys.stderr.write("wallprobe: interrupted; run the same command again to go on\n")
        raise SystemExit(INTERRUPTED) from None
    finally:
        warnings.formatwarning = usual
