"""Which report goes with which pairs."""

from collections.abc import Mapping

from torch import Tensor

from wallprobe.hooks.interchange.pairs import PROGRAMS, TEXTS, Pairs
from wallprobe.hooks.interchange.programs import Programs
from wallprobe.hooks.interchange.prompts import Prompts
from wallprobe.hooks.interchange.report import Report
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.sides import Side

__all__ = ["Report", "report_of"]


def report_of(
    request: Request, sides: tuple[Side, Side], pairs: Pairs, ceiling: tuple[Tensor, Mapping[str, Tensor]], more: Mapping[str, Tensor]
) -> Report:
    """The report on these pairs; arguments as `Report`'s."""
    chosen: type[Report] = {PROGRAMS: Programs, TEXTS: Prompts}.get(pairs.kind, Report)
    return chosen(request, sides, pairs, ceiling, more)
