"""wallprobe: does this network carry a rule, or only the answer? The public face; names load on first use, torch with them."""

import importlib
from typing import TYPE_CHECKING, Any

# Each public name and the module it lives in.
_HOMES = {
    # results and runs
    "Result": "store.results",
    "load_result": "store.results",
    "list_results": "store.results",
    "Run": "store.runs",
    "find_run": "store.runs",
    "list_runs": "store.runs",
    "WallprobeError": "errors",
    # models and what they read
    "load": "models",
    "wrap": "models",
    "Loaded": "models",
    "PromptSet": "hooks.attach.prompt_sets",
    # instruments
    "capture": "hooks.attach.modules.residuals",
    "gains": "hooks.gains.measure",
    "rescale": "hooks.gains.rescale",
    "flow": "hooks.flow.lens",
    "maps": "hooks.flow.sheaf",
    "interchange": "hooks.asked",
    "probe": "hooks.asked",
    "attention": "hooks.asked",
    "ablate": "hooks.asked",
    "geometry": "hooks.asked",
    # pairs and what is read of them
    "Pairs": "hooks.interchange.texts",
    "reads": "hooks.interchange.reads",
    # hook modules
    "ResidualCache": "hooks.attach.modules.residuals",
    "read_cache": "hooks.attach.modules.residuals",
    "Patch": "hooks.attach.modules.patching",
    "AttentionWatch": "hooks.attach.modules.watching",
    "GainMeter": "hooks.gains.meter",
    "ProbeBank": "hooks.probes.bank",
    # interventions
    "Swap": "hooks.attach.interventions",
    "AlignedSwap": "hooks.attach.interventions",
    "OtherDonor": "hooks.attach.interventions",
    "NormMatched": "hooks.attach.interventions",
    "Zero": "hooks.attach.interventions",
    "Mean": "hooks.attach.interventions",
    # training
    "RecurrenceTask": "tasks.recurrence",
    "Condition": "training.wall.conditions",
    "Job": "training.wall.jobs",
    "train": "training.wall.asked",
    "evaluate": "training.wall.asked",
    # pages
    "gallery": "gallery",
}

_MODULES = ("gallery", "reads")  # given whole; the gallery's folder can be called

if TYPE_CHECKING:
    from wallprobe.errors import WallprobeError as WallprobeError
    from wallprobe.gallery.asked import gallery as gallery
    from wallprobe.hooks.asked import ablate as ablate
    from wallprobe.hooks.asked import attention as attention
    from wallprobe.hooks.asked import geometry as geometry
    from wallprobe.hooks.asked import interchange as interchange
    from wallprobe.hooks.asked import probe as probe
    from wallprobe.hooks.attach.interventions import AlignedSwap as AlignedSwap
    from wallprobe.hooks.attach.interventions import Mean as Mean
    from wallprobe.hooks.attach.interventions import NormMatched as NormMatched
    from wallprobe.hooks.attach.interventions import OtherDonor as OtherDonor
    from wallprobe.hooks.attach.interventions import Swap as Swap
    from wallprobe.hooks.attach.interventions import Zero as Zero
    from wallprobe.hooks.attach.modules.patching import Patch as Patch
    from wallprobe.hooks.attach.modules.residuals import ResidualCache as ResidualCache
    from wallprobe.hooks.attach.modules.residuals import capture as capture
    from wallprobe.hooks.attach.modules.residuals import read_cache as read_cache
    from wallprobe.hooks.attach.modules.watching import AttentionWatch as AttentionWatch
    from wallprobe.hooks.attach.prompt_sets import PromptSet as PromptSet
    from wallprobe.hooks.flow.lens import flow as flow
    from wallprobe.hooks.flow.sheaf import maps as maps
    from wallprobe.hooks.gains.measure import gains as gains
    from wallprobe.hooks.gains.meter import GainMeter as GainMeter
    from wallprobe.hooks.gains.rescale import rescale as rescale
    from wallprobe.hooks.interchange import reads as reads
    from wallprobe.hooks.interchange.texts import Pairs as Pairs
    from wallprobe.hooks.probes.bank import ProbeBank as ProbeBank
    from wallprobe.models import Loaded as Loaded
    from wallprobe.models import load as load
    from wallprobe.models import wrap as wrap
    from wallprobe.store.results import Result as Result
    from wallprobe.store.results import list_results as list_results
    from wallprobe.store.results import load_result as load_result
    from wallprobe.store.runs import Run as Run
    from wallprobe.store.runs import find_run as find_run
    from wallprobe.store.runs import list_runs as list_runs
    from wallprobe.tasks.recurrence import RecurrenceTask as RecurrenceTask
    from wallprobe.training.wall.asked import evaluate as evaluate
    from wallprobe.training.wall.asked import train as train
    from wallprobe.training.wall.conditions import Condition as Condition
    from wallprobe.training.wall.jobs import Job as Job

    __version__: str

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("wallprobe")
    if name not in _HOMES:
        raise AttributeError(f"module 'wallprobe' has no attribute '{name}'")
    home = importlib.import_module(f"wallprobe.{_HOMES[name]}")
    return home if name in _MODULES else getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
