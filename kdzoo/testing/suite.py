"""The conformance kit's two doors: a class of pytest's for each component, and a plain function."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from kdzoo.errors import KdzooError, PluginError, did_you_mean
from kdzoo.extend.component import Component
from kdzoo.extend.isolation import TORCH_SETTINGS, changed_settings
from kdzoo.testing.adapters import AdapterChecks
from kdzoo.testing.checks import Checks, ContractError, NotApplicable, Result
from kdzoo.testing.count import Count
from kdzoo.testing.datasets import DatasetChecks
from kdzoo.testing.losses import LossChecks
from kdzoo.testing.models import ModelChecks
from kdzoo.testing.observers import ObserverChecks
from kdzoo.testing.policies import PolicyChecks

if TYPE_CHECKING:  # kdzoo itself does not need it
    import pytest

__all__ = ["KINDS", "conformance", "run_checks"]

KINDS: dict[str, type[Checks[Any]]] = {
    checks.base.kind: checks
    for checks in (
        LossChecks,
        AdapterChecks,
        PolicyChecks,
        ModelChecks,
        DatasetChecks,
        ObserverChecks,
    )
}
"""The checks of each kind of component."""

Entry = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]

_Class = TypeVar("_Class", bound=type)


def conformance(
    component: type[Component],
    *,
    entry: Entry = MappingProxyType({}),
    expected_failures: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> Callable[[_Class], _Class]:
    """Make a class a suite of tests: each check of the component's kind is one of them.

    ::

        @kdzoo.testing.conformance(LogitMSE)
        class TestLogitMSE:
            pass

    The tests are called ``test_`` and the check's name. Those that take seconds carry pytest's
    mark ``slow``. At its end pytest says how many checks of each suite ran, and fails where none
    did although all were chosen.

    Args:
        component: the class to be checked.
        entry: what a spec says of it beside ``use``: its params, a loss's ``layers`` and
            ``adapter``. Or a function from an empty directory to that, for a component that reads
            files.
        expected_failures: by a check's name, the reason why the component fails it. A check that is
            expected to fail, and does not, is a failure. One at least of those that apply to every
            component of its kind must be left, or a suite of which nothing ran could pass.
        options: what else the checks of its kind take: ``shapes`` for losses and adapters,
            ``input_shape`` and ``num_classes`` for models.

    Raises:
        TypeError: an argument, or the class, is not what it must be.
    """
    plan = _Plan(component, entry, expected_failures, options)

    def decorate(cls: _Class) -> _Class:
        if not isinstance(cls, type):
            raise TypeError(f"decorate a class with conformance, not {cls!r}")
        if "<locals>" in cls.__qualname__ or cls.__init__ is not object.__init__:  # type: ignore[misc]
            raise TypeError(
                f"{cls.__qualname__}: pytest finds only classes at the top of a module, without "
                "an __init__"
            )
        for name, check in plan.checks.methods():
            if hasattr(cls, f"test_{name}"):
                raise TypeError(f"{cls.__name__}: test_{name} is a check's; choose another name")
            test = plan.as_test(name, check)
            test.__name__ = f"test_{name}"
            test.__qualname__ = f"{cls.__qualname__}.test_{name}"
            test.__module__ = cls.__module__
            setattr(cls, f"test_{name}", test)
        theirs = getattr(cls, "pytest_generate_tests", None)

        def pytest_generate_tests(self: object, metafunc: pytest.Metafunc) -> None:
            """What pytest calls where it collects the class."""
            checks = dict(plan.checks.methods())
            slow = [f"test_{name}" for name, check in checks.items() if _is_slow(check)]
            Count.expect(metafunc, [f"test_{name}" for name in checks], slow)
            if theirs is not None:
                theirs(self, metafunc)

        setattr(cls, "pytest_generate_tests", pytest_generate_tests)  # noqa: B010
        # Whatever pytest is told that classes of tests are called; mypy knows no such attribute.
        setattr(cls, "__test__", True)  # noqa: B010
        return cls

    return decorate


def run_checks(
    component: type[Component],
    *,
    entry: Entry = MappingProxyType({}),
    expected_failures: Mapping[str, str] = MappingProxyType({}),
    checks: Collection[str] | None = None,
    **options: Any,
) -> list[Result]:
    """The same without pytest: what came of each check, in their order.

    Args:
        component: as for :func:`conformance`.
        entry: as there.
        expected_failures: as there.
        checks: the names of those to run; by default all but those that take seconds.
        options: as there.

    Raises:
        TypeError: an argument is not what it must be.
    """
    plan = _Plan(component, entry, expected_failures, options)
    for name in checks or ():
        plan.refuse_unknown(name)
    results = []
    for name, check in plan.checks.methods():
        if not _is_slow(check) if checks is None else name in checks:
            with tempfile.TemporaryDirectory() as folder:
                results.append(plan.run(name, Path(folder)))
    return results


class _Plan:
    """What is checked, and what is said of it."""

    def __init__(
        self,
        component: type[Component],
        entry: Entry,
        expected: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> None:
        kind = getattr(component, "kind", None)
        if not isinstance(component, type) or kind not in KINDS:
            raise TypeError(f"{component!r} is no component: derive it from kdzoo.Loss, ...")
        self.component = component
        self.checks = KINDS[kind]
        inspect.signature(self.checks).bind(component, entry, Path(), **options)
        self.entry, self.expected, self.options = entry, dict(expected), dict(options)
        for name, reason in self.expected.items():
            self.refuse_unknown(name)
            if not reason.strip():
                raise TypeError(f"expected_failures: say why {name} fails")
        # Decided here and not by counting: checks may be chosen, and shared among processes.
        always = {
            name
            for name, check in self.checks.methods()
            if name != "contract" and not (_is_slow(check) or _is_for_some(check))
        }
        if always <= self.expected.keys():
            raise TypeError(
                f"expected_failures: no check is left that says anything of {component.__name__}; "
                f"expect {', '.join(sorted(always))} not all to fail"
            )

    def refuse_unknown(self, name: str) -> None:
        """Raise a TypeError for a name that is no check's."""
        names = dict(self.checks.methods())
        if name not in names:
            kind = self.component.kind
            raise TypeError(f'a {kind} has no check "{name}"{did_you_mean(name, names)}')

    def run(self, name: str, folder: Path) -> Result:
        """One check, with a random state of its own. What it changes for the whole process is put
        back, or the checks after it would fail, and say something else."""
        reason, place = self.expected.get(name), Path.cwd()
        changed: list[str] = []
        try:
            with (
                changed_settings(TORCH_SETTINGS) as changed,
                torch.random.fork_rng(devices=[]),
            ):
                torch.manual_seed(0)
                checks = self.checks(self.component, self.entry, folder, **self.options)
                getattr(checks, name)()
        except NotApplicable as why:
            assert _is_for_some(getattr(self.checks, name))  # else it would count as one that ran
            if reason is None:
                return Result(name, "not applicable", str(why))
            return Result(name, "failed", f"is expected to fail, and does not apply: {why}")
        except Exception as error:
            if reason is not None:
                return Result(name, "expected failure", reason)
            for other in self._earlier(name):
                if self._fails(other):
                    return Result(
                        name, "not applicable", f"its failure says nothing while {other} fails"
                    )
            also = f" (meanwhile it changed {', '.join(changed)})" if changed else ""
            return Result(name, "failed", f"{_said(error, self.component)}{also}", error)
        finally:
            os.chdir(place)
        if reason is not None:
            passed = f"passed, although it is expected to fail ({reason}); expect it no longer"
            return Result(name, "failed", passed)
        return Result(name, "passed")

    def _earlier(self, name: str) -> Iterator[str]:
        """The checks on which this one rests, those first on which they rest themselves."""
        for other in getattr(getattr(self.checks, name), "after", ()):
            yield from self._earlier(other)
            yield other

    def _fails(self, name: str) -> bool:
        """Not if that is expected: what is left out must leave a failure behind."""
        with tempfile.TemporaryDirectory() as folder:
            return self.run(name, Path(folder)).status == "failed"

    def as_test(self, name: str, check: Callable[..., None]) -> Callable[..., None]:
        """The check as a test of pytest's."""
        import pytest

        def test(self: object, tmp_path: Path) -> None:
            result = plan.run(name, tmp_path)
            if result.status == "expected failure":
                pytest.xfail(result.reason)
            if result.status == "not applicable":
                pytest.skip(f"{plan.component.__name__}: {result.reason}")
            if result.cause is not None and not isinstance(result.cause, ContractError):
                raise result.cause  # with the place where the component raised it
            if result.status == "failed":
                pytest.fail(f"{plan.component.__name__}: {result.reason}", pytrace=False)

        plan = self
        test.__doc__ = check.__doc__
        return pytest.mark.slow(test) if _is_slow(check) else test


def _said(error: BaseException, component: type[Component]) -> str:
    """Why a check failed; of what it did not expect also where the component raised it."""
    if isinstance(error, ContractError | PluginError):  # the latter says where by itself
        return str(error)
    said = (
        str(error)
        if isinstance(error, KdzooError)
        else f"it raised {type(error).__name__}: {error}"
    )
    file = getattr(sys.modules.get(component.__module__), "__file__", None)
    cause: BaseException | None = error
    while cause is not None:
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if frame.filename == file:
                return f"{said} ({Path(file).name}:{frame.lineno})"
        cause = cause.__cause__
    return said


def _is_slow(check: Callable[..., None]) -> bool:
    return getattr(check, "slow", False)


def _is_for_some(check: Callable[..., None]) -> bool:
    return getattr(check, "sometimes", False)
