"""How many checks of each suite ran: pytest says it at the end, and fails where none did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # kdzoo itself does not need it
    import pytest

__all__ = ["Count"]


class Count:
    """A plugin of pytest's, which the first suite that is collected brings along.

    Where pytest-xdist shares the tests among processes, none of them knows what ran: there is no
    count.
    """

    def __init__(self) -> None:
        self._suites: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        self._ran: dict[str, set[str]] = defaultdict(set)
        self._said: list[str] = []

    @classmethod
    def expect(
        cls, metafunc: pytest.Metafunc, tests: Collection[str], slow: Collection[str]
    ) -> None:
        """A suite is collected.

        Args:
            metafunc: of one of its tests.
            tests: the names of its checks' tests.
            slow: those of them that are left out by default.
        """
        suite, plugins = metafunc.definition.parent, metafunc.config.pluginmanager
        if suite is None or hasattr(metafunc.config, "workerinput"):
            return
        count = plugins.get_plugin(__name__)
        if count is None:
            plugins.register(count := cls(), __name__)
        count._suites[suite.nodeid] = (frozenset(tests), frozenset(slow))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A check that failed as it was expected to has run, too."""
        suite, _, test = report.nodeid.rpartition("::")
        if report.when == "call" and (not report.skipped or hasattr(report, "wasxfail")):
            self._ran[suite].add(test)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Nothing is said of a suite that was chosen in part and of which nothing ran."""
        if session.config.option.collectonly:
            return
        chosen: dict[str, set[str]] = defaultdict(set)
        for item in session.items:
            suite, _, test = item.nodeid.rpartition("::")
            chosen[suite].add(test)
        for suite, (tests, slow) in self._suites.items():
            ran = len(self._ran[suite] & tests)
            if chosen[suite] & tests:
                self._said.append(f"{suite}: {ran} of {len(tests)} checks ran")
            if not ran and chosen[suite] >= tests - slow:
                self._said[-1] += (
                    "; a suite of which nothing ran is no evidence, and fails: where it cannot "
                    "run, skip its module (pytest.importorskip)"
                )
                session.exitstatus = session.exitstatus or 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The counts, one line a suite."""
        if self._said:
            terminalreporter.section("conformance checks")
            for line in self._said:
                terminalreporter.line(line)
