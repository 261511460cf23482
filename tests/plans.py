"""Plans for tests: a device with round rates, and the plan of a configuration from few layers."""

from __future__ import annotations

from conftest import composed

from dash_exp.planning.machine import KNOWN, Device
from dash_exp.planning.plan import FEW_LAYERS, Plan, planned

HERE = Device("here", "cpu", 8 * 2**30, {"float32": 1e11, "bfloat16": 1e11}, 1e10, (1e10, 1e9), "made up")


def few_layers(*overrides: str, device: Device = KNOWN["h200"]) -> Plan:
    """The plan of these overrides, by default on one H200; memory is extrapolated from few layers, which is fast."""
    return planned(composed(*overrides), device, FEW_LAYERS)
