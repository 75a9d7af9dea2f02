"""The conditions: `hello` puts a signal, a route, positions and a schedule of wallprobe's together, `hello-peak` uses our own signal."""

from wallprobe.training.wall.conditions import Condition, Schedule

HELLO = Condition(
    "hello",
    "program_weight",
    "softmax_peak",
    positions="alternate",
    schedule=Schedule(stop=2 / 3),
    summary="class posterior through the softmax's peak, at every other position beyond the wall, for two thirds of the run",
)

PEAK = Condition(
    "hello-peak", "peak", "softmax_peak", summary="how far the exact answer's likeliest token stands out, through the softmax's peak"
)
