"""Tests that need an NVIDIA GPU; without one they are skipped, or, with ``--gpu``, fail."""

from pathlib import Path

import pytest

from clebsch import backend

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    state = backend.backends()["cuda"]
    if config.getoption("--gpu") and "devices:" not in state:
        raise pytest.UsageError(f"tests/gpu need an NVIDIA GPU; cuda is {state}")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if "devices:" not in state:
                item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU; cuda is {state}"))
