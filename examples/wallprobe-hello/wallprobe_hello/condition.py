"""The condition `hello`: a signal, a route, positions and a schedule of wallprobe's, put together anew."""

from wallprobe.training.wall.conditions import Condition, Schedule

HELLO = Condition(
    "hello",
    "program_weight",
    "softmax_peak",
    positions="alternate",
    schedule=Schedule(stop=2 / 3),
    summary="class posterior through the softmax's peak, at every other position beyond the wall, for two thirds of the run",
)
