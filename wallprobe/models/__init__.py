"""The one seam to transformer-lens and transformers: load a model, build one, name its hooks. Nothing outside this folder makes one."""

from wallprobe.models.building import build, build_equilibrium, hooked
from wallprobe.models.limits import Limits, limits
from wallprobe.models.loaded import SITES, Loaded, Plain, hook_name, on_input, pick_device, quiet
from wallprobe.models.loading import OWNERLESS, load, load_plain, load_run
from wallprobe.models.wrapping import Model, as_model, attachable, resting, wrap

__all__ = [
    "OWNERLESS",
    "SITES",
    "Limits",
    "Loaded",
    "Model",
    "Plain",
    "as_model",
    "attachable",
    "build",
    "build_equilibrium",
    "hook_name",
    "hooked",
    "limits",
    "load",
    "load_plain",
    "load_run",
    "on_input",
    "pick_device",
    "quiet",
    "resting",
    "wrap",
]
