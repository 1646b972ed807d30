"""Sessions with other kernels fail where tests do not reach all of them, whichever processes run these."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

KERNELS = """
from types import SimpleNamespace

found = set()

def launched():
    before = set(found)
    found.clear()
    return before

kernels = SimpleNamespace(
    MARK="not_here", NAME="kernels", OTHER_TESTS="test_other.py", launched=launched,
    every_kernel=lambda: {("one", "float"), ("two",)},
)
"""
CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from found_kernels import kernels
from kernels_reached import Plugin

def pytest_addoption(parser):
    parser.addoption("--every-kernel", action="store_true")

def pytest_configure(config):
    for mark in ("about_the_cpu", "not_here"):
        config.addinivalue_line("markers", mark + "(why)")
    config.pluginmanager.register(Plugin(config, kernels))
"""
ONE = """
import pytest
from found_kernels import found

def test_one():
    found.add(("one", "float"))

def test_none():
    pass

@pytest.mark.not_here("because")
def test_left_out():
    found.add(("two",))

@pytest.mark.about_the_cpu("because")
def test_of_the_cpu():
    found.add(("two",))

@pytest.mark.xfail(strict=True)
def test_fails():
    found.add(("two",))
    assert False
"""
TWO = """
from found_kernels import found

def test_two():
    found.add(("two",))
"""


def test_a_session_fails_unless_every_kernel_is_reached(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(found_kernels=KERNELS, test_some=ONE, test_other=TWO)
    part = pytester.runpytest_inprocess("-n0", "-v")
    assert part.ret == 0
    part.stdout.fnmatch_lines(
        ["operator tests reached 1 of 2 kernels", "1 of them passed without a kernel, cases of test_none"]
    )
    incomplete = pytester.runpytest_inprocess("-n1", "--every-kernel")
    assert incomplete.ret == pytest.ExitCode.TESTS_FAILED
    incomplete.stdout.fnmatch_lines(["not reached: two"])
    pytester.makepyfile(test_more=TWO)
    complete = pytester.runpytest_inprocess("-n1", "--every-kernel")
    assert complete.ret == 0
    complete.stdout.fnmatch_lines(["operator tests reached 2 of 2 kernels"])
