"""A plugin of pytest for sessions in which other kernels take the place of the CPU's: which operator tests
are left out, and which of these kernels the others reach.

All run but those that say why they do not: `about_the_cpu`, and `not_emulated` or `not_interpreted`. With
``--every-kernel`` the session fails unless they reached every one.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

__all__ = ["Plugin"]


class Plugin:
    """`kernels` is emulation or interpretation."""

    def __init__(self, config: pytest.Config, kernels: ModuleType) -> None:
        self.config, self.kernels = config, kernels
        self.reached: set[tuple[str, ...]] = set()
        self.without: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        marks = ("about_the_cpu", self.kernels.MARK)
        out = [item for item in items if any(map(item.get_closest_marker, marks))]
        self.config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.kernels.launched()
        yield
        item.user_properties.append(("kernels", sorted(self.kernels.launched())))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """On the machine that sums up, whichever process ran the test."""
        if report.when == "call" and report.passed and self.kernels.OTHER_TESTS not in report.nodeid:
            reached = dict(report.user_properties).get("kernels", ())
            self.reached.update(map(tuple, reached))
            if not reached:
                self.without.append(report.nodeid)

    @property
    def missing(self) -> list[tuple[str, ...]]:
        return sorted(self.kernels.every_kernel() - self.reached)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        alone = not hasattr(self.config, "workerinput")
        if alone and self.config.getoption("--every-kernel") and self.missing and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write, whole = terminalreporter.write_line, self.config.getoption("--every-kernel")
        every = self.kernels.every_kernel()
        if not every:
            return
        write(f"operator tests reached {len(every & self.reached)} of {len(every)} {self.kernels.NAME}")
        for kernel in self.missing if whole else ():
            write(f"not reached: {', '.join(kernel)}", red=True)
        if self.without:
            names = sorted({nodeid.split("::")[-1].split("[")[0] for nodeid in self.without})
            which = f", cases of {', '.join(names)}" if self.config.getoption("verbose") > 0 else ""
            write(f"{len(self.without)} of them passed without a kernel{which}")
