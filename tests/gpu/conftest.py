"""Tests that need an NVIDIA GPU; without one they are skipped, or, with ``--gpu``, fail. With ``--emulated``
they run dry, on the emulator, but for those that no emulator can (device.py)."""

from pathlib import Path

import pytest

import another_device
import emulation
from clebsch import backend

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    state = backend.backends()["cuda"]
    if config.getoption("--gpu") and "devices:" not in state:
        raise pytest.UsageError(f"tests/gpu need an NVIDIA GPU; cuda is {state}")
    for item in items:
        if HERE in item.path.parents and not emulation.enabled():
            item.add_marker(pytest.mark.gpu)
            if "devices:" not in state:
                item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU; cuda is {state}"))


@pytest.fixture(autouse=True)
def emulator_taken_for_a_gpu(monkeypatch):
    if emulation.enabled():
        another_device.pretend_built(monkeypatch)
        another_device.take_cpu_for_gpu(monkeypatch)
