"""The command line. Commands import what they need when they run, so that --help needs neither torch nor transformer-lens."""

import sys

import typer

from wallprobe.cli import attention, evaluate, gains, gallery, interchange, runs, train
from wallprobe.errors import WallprobeError

app = typer.Typer(
    name="wallprobe",
    help="Does this network carry a rule, or only the answer? Where was the gradient, and what did it buy? How loud is each layer?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for module in (train, evaluate, runs, interchange, attention, gains, gallery):
    module.register(app)


def main() -> None:
    """Entry point: a WallprobeError becomes one line on stderr and exit code 2; an interrupt, 130."""
    try:
        app()
    except WallprobeError as error:
        sys.stderr.write(f"wallprobe: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("wallprobe: interrupted; run the same command again to go on\n")
        raise SystemExit(130) from None
