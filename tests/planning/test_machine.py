from dash_exp.planning.machine import KNOWN
from dash_exp.settings.run import DEVICES


def test_the_devices_that_can_be_named_are_those_that_are_known():
    assert set(DEVICES) == set(KNOWN)
