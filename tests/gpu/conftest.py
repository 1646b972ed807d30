"""Tests that need an NVIDIA GPU; without one they are skipped, each with the reason."""

from pathlib import Path

import pytest

from clebsch import backend

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    state = backend.backends()["cuda"]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if "devices:" not in state:
                item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU; cuda is {state}"))
