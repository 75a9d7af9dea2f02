"""Conformance: is a model what the instruments take it for, and is each part of a plugin what its group asks for? `wallprobe doctor`."""

from wallprobe.doctor.check import Check
from wallprobe.doctor.model import examine_model
from wallprobe.doctor.plugin import distributions, examine_plugins

__all__ = ["Check", "distributions", "examine_model", "examine_plugins"]
