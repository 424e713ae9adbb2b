"""The kit as pytest's tests and as a function: names, expected failures, and nothing run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from warm import Warm

import kdzoo
from kdzoo.testing import conformance, run_checks
from kdzoo.testing.suite import KINDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing-a-plugin.md"

COMPONENTS = '''
import kdzoo
import kdzoo.testing


class LogitMSE(kdzoo.Loss):
    """Regress the teacher's logits."""

    name = "my-logit-mse"

    def forward(self, student, teacher, batch):
        return (student.logits.float() - teacher.logits.float()).square().mean(1)


class Weighted(LogitMSE):
    """Applies the class weights itself."""

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) * batch.weights


class Raises(LogitMSE):
    """Has a mistake in it."""

    def forward(self, student, teacher, batch):
        return student.logit


class Never(kdzoo.ClassPolicy):
    """Cannot be used."""

    name = "my-never"

    def update(self, curves):
        raise ValueError("never")

'''


SUITES = """
@kdzoo.testing.conformance(LogitMSE)
class Whatever:
    def pytest_generate_tests(self, metafunc):
        if "number" in metafunc.fixturenames:
            metafunc.parametrize("number", [1, 2])

    def test_own(self, number):
        pass


@kdzoo.testing.conformance(Weighted)
class TestWeighted:
    pass


@kdzoo.testing.conformance(Raises)
class TestRaises:
    pass


@kdzoo.testing.conformance(Weighted, expected_failures={"class_weights": "by design"})
class TestExpected:
    pass


@kdzoo.testing.conformance(LogitMSE, expected_failures={"class_weights": "by design"})
class TestUnexpected:
    pass


"""

LEFT_OUT = """
def pytest_deselected(items):
    for item in items:
        if item.get_closest_marker("slow"):
            print("left out as slow:", item.nodeid)
"""

NOTHING = """
from kdzoo.testing.policies import PolicyChecks

failing = {name: "never" for name, _ in PolicyChecks.methods() if name != "contract"}


@kdzoo.testing.conformance(Never, expected_failures=failing)
class TestNothing:
    pass
"""


def pytest_in(warm: Warm, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run("pytest", "-q", "-rA", "-W", "ignore", *arguments, cwd=folder)


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> str:
    """What pytest says of these suites, in a project that has no settings of its own."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "test_mine.py").write_text(COMPONENTS + SUITES)
    (folder / "my_package").mkdir()
    (loss,) = (code for code in blocks(ROOT / "README.md") if "class LogitMSE" in code)
    (folder / "my_package" / "logit_mse.py").write_text(loss)
    (suite,) = (code for code in blocks(PAGE) if "class TestLogitMSE" in code)
    (folder / "test_shown.py").write_text(suite)
    (folder / "conftest.py").write_text(LEFT_OUT)
    some = "test_own or value or shift or weights or gradients or (Whatever and for_real)"
    chosen = ["-k", f"{some} or (shown and not processes and not compiled)", "-m", "not slow"]
    done = pytest_in(warm, folder, *chosen)
    assert done.returncode == 1, done.stderr
    return done.stdout


def test_each_check_is_a_test_whatever_its_class_is_called(said: str) -> None:
    assert "PASSED test_mine.py::Whatever::test_one_value_a_sample" in said
    assert "PASSED test_mine.py::Whatever::test_own[2]" in said
    assert "it does not declare the invariance shift" in said
    assert "left out as slow: test_mine.py::Whatever::test_compiled_for_real\n" in said


def test_the_page_shows_what_passes(said: str) -> None:
    assert "PASSED test_shown.py::TestLogitMSE::test_what_only_this_loss_does" in said
    assert said.count("PASSED test_shown.py::TestLogitMSE::") == 22
    assert "FAILED test_shown.py" not in said


def test_how_many_ran_is_counted(said: str) -> None:
    """Also what failed, as expected or not; not what does not apply, or is no check."""
    assert "\ntest_shown.py::TestLogitMSE: 21 of 28 checks ran\n" in said
    for suite in ("Whatever", "TestWeighted", "TestExpected", "TestUnexpected"):
        assert f"\ntest_mine.py::{suite}: 3 of 28 checks ran\n" in said


def test_the_page_lists_every_check() -> None:
    shown = re.findall(r"^\| `(\w+)`( \(slow\))? \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    wanted = [
        (name, " (slow)" * getattr(check, "slow", False), " ".join((check.__doc__ or "").split()))
        for checks in KINDS.values()
        for name, check in checks.methods()
    ]
    assert shown == [(name, slow, said.replace("``", "`")) for name, slow, said in wanted]
    count = len(list(KINDS["loss"].methods()))
    assert f"{count} checks that every" in (ROOT / "README.md").read_text()


def test_a_failure_says_what_would_be_right(said: str) -> None:
    assert "Weighted: its rows depend on batch.weights; the engine applies row i's" in said
    assert "PASSED test_mine.py::TestWeighted::test_gradients" in said


def test_a_mistake_is_shown_where_it_is(said: str) -> None:
    assert "return student.logit\n" in said
    assert "AttributeError: 'Outputs' object has no attribute 'logit'" in said


def test_expected_failures_must_fail(said: str) -> None:
    assert "XFAIL test_mine.py::TestExpected::test_class_weights - by design" in said
    assert "FAILED test_mine.py::TestUnexpected::test_class_weights" in said
    assert "passed, although it is expected to fail (by design); expect it no longer" in said


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [[], ["-n", "2"], ["-k", "contract"], ["-n", "2", "-k", "pure"]])
def test_a_suite_in_which_nothing_may_run_is_not_green(
    tmp_path: Path, chosen: list[str], warm: Warm
) -> None:
    (tmp_path / "test_nothing.py").write_text(COMPONENTS + NOTHING)
    done = pytest_in(warm, tmp_path, *chosen)
    assert done.returncode not in (0, 5), done.stdout  # 5: there were no tests
    assert "TypeError: expected_failures: no check is left that says anything of Never" in (
        done.stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen", [["-n", "2"], ["-n", "2", "-k", "shift or value"], ["-k", "shift"]]
)
def test_a_sound_suite_is_green_whatever_is_chosen(
    tmp_path: Path, chosen: list[str], warm: Warm
) -> None:
    suite = "@kdzoo.testing.conformance(LogitMSE)\nclass TestSound:\n    pass\n"
    (tmp_path / "test_sound.py").write_text(COMPONENTS + suite)
    done = pytest_in(warm, tmp_path, *chosen)
    assert done.returncode == 0, done.stdout
    assert "it does not declare the invariance shift" in done.stdout


SKIPPED = """
import pytest


@pytest.mark.skip(reason="not today")
@kdzoo.testing.conformance(LogitMSE)
class TestSkipped:
    def test_own(self):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "code"), [([], 1), (["-m", "not slow"], 1), (["-k", "contract"], 0)]
)
def test_a_suite_of_which_nothing_ran_is_not_green(
    warm: Warm, tmp_path: Path, chosen: list[str], code: int
) -> None:
    (tmp_path / "test_skipped.py").write_text(COMPONENTS + SKIPPED)
    assert pytest_in(warm, tmp_path, "--collect-only").returncode == 0
    done = pytest_in(warm, tmp_path, *chosen)
    assert done.returncode == code, done.stdout
    end = "; a suite of which nothing ran is no evidence, and fails" if code else "\n"
    assert f"test_skipped.py::TestSkipped: 0 of 28 checks ran{end}" in done.stdout


class Sound(kdzoo.Loss):
    """Squared difference of the logits."""

    name = "sound-in-suite"

    def forward(self, student, teacher, batch):
        return (student.logits.float() - teacher.logits.float()).square().mean(1)


def test_without_pytest() -> None:
    results = run_checks(Sound, checks=["gradients", "shift", "resume"])
    assert [(r.check, r.status) for r in results] == [
        ("gradients", "passed"),
        ("resume", "passed"),
        ("shift", "not applicable"),
    ]
    (result,) = run_checks(Sound, checks=["shift"], expected_failures={"shift": "why not"})
    assert (result.status, "does not apply" in result.reason) == ("failed", True)
    (result,) = run_checks(Sound, checks=["contract"], entry={"temperature": 2})
    assert "entry" in result.reason or "unknown parameter" in result.reason


class Widens(Sound):
    """Makes everybody compute in double precision, and answers in half."""

    def forward(self, student, teacher, batch):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        rows = super().forward(student, teacher, batch) + torch.zeros(len(batch.targets))
        return rows.half()


@pytest.mark.parametrize("checks", [["leaves_torch_alone"], ["gradients", "leaves_torch_alone"]])
def test_what_is_changed_for_everybody_is_named_whatever_ran_before(checks: list[str]) -> None:
    before = torch.get_num_threads()
    results = run_checks(Widens, checks=[*checks, "one_value_a_sample"])
    named = "it changed torch's default dtype, torch's number of threads"
    said = {result.check: result.reason for result in results if result.status == "failed"}
    assert said["leaves_torch_alone"].startswith(named)
    assert f"(meanwhile {named})" in said["one_value_a_sample"]
    assert (torch.get_default_dtype(), torch.get_num_threads()) == (torch.float32, before)


def test_importing_the_kit_needs_no_pytest() -> None:
    program = "import sys, kdzoo.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"component": int}, "is no component: derive it from kdzoo.Loss"),
        ({"shape": 3}, "unexpected keyword argument 'shape'|too many|got an unexpected"),
        ({"expected_failures": {"shifts": "x"}}, 'no check "shifts"; did you mean "shift"'),
        ({"expected_failures": {"shift": " "}}, "say why shift fails"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        conformance(**{"component": Sound, **arguments})


def test_classes_that_pytest_would_not_find() -> None:
    class Hidden:
        pass

    with pytest.raises(TypeError, match="only classes at the top of a module"):
        conformance(Sound)(Hidden)
    named = type("Named", (), {"test_shift": 1})
    with pytest.raises(TypeError, match="test_shift is a check's"):
        conformance(Sound)(named)
    with pytest.raises(TypeError, match="decorate a class"):
        conformance(Sound)(len)  # type: ignore[type-var]
