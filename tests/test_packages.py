"""Packages install, pass their own tests and run: those that kdzoo writes, and docs/examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fresh import CHECKS, Fresh
from ruamel.yaml import YAML

from kdzoo.extend.hookspecs import HOOKS
from kdzoo.extend.scaffold import write_package

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PACKAGES = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))
KINDS = [base.kind for base in HOOKS.values()]


def test_each_example_is_short() -> None:
    assert len(PACKAGES) == 3
    for package in PACKAGES:
        (module,) = package.glob("*.py")
        assert len(module.read_text().splitlines()) <= 60


@pytest.mark.slow
def test_each_does_what_it_says(fresh: Fresh, tmp_path: Path) -> None:
    examples = [Path(shutil.copytree(package, tmp_path / package.name)) for package in PACKAGES]
    written = {kind: write_package(f"my-{kind}", kind, tmp_path) for kind in KINDS}
    fresh.try_packages([*examples, *written.values()])
    listed = json.loads(fresh("kdzoo plugins --json", tmp_path))
    added = {record["name"]: record["adds"] for record in listed}
    for kind, folder in written.items():
        assert added[f"my-{kind}"] == {kind: [f"my-{kind}"]}
        workflow = YAML(typ="safe").load(folder / ".github" / "workflows" / "test.yml")
        steps = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
        assert steps == ["python -m pip install '.[test]'", *CHECKS, "pytest"]


MYPY = """
[tool.mypy]
strict = true
plugins = ["pydantic.mypy"]
"""
PLUGIN = '''
from torch import Tensor
import kdzoo.testing

class LogitMSE(kdzoo.Loss):
    """Regress the teacher's logits."""
    name = "logit-mse"
    class Params(kdzoo.Params):
        centre: bool = kdzoo.Field(True, description="Subtract each row's mean first.")
    def forward(
        self, student: kdzoo.Outputs, teacher: kdzoo.Outputs, batch: kdzoo.Batch
    ) -> Tensor:
        s, t = student.logits, teacher.logits
        if self.params.centre:
            s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
        return (s - t).square().mean(1)

@kdzoo.testing.conformance(LogitMSE, expected_failures={"half_precision": "overflows"})
class TestLogitMSE:
    """Every check."""

@kdzoo.hookimpl
def kdzoo_losses() -> list[type[kdzoo.Loss]]:
    return [LogitMSE]
'''


@pytest.mark.slow
def test_a_plugin_passes_mypy_although_names_load_lazily(fresh: Fresh, tmp_path: Path) -> None:
    # The packages' settings: mypy has kept what it knows of torch under these.
    (tmp_path / "pyproject.toml").write_text(MYPY)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    fresh("python -m mypy plugin.py", tmp_path)
    (tmp_path / "plugin.py").write_text(PLUGIN.replace("student.logits", "student.logit"))
    said = fresh("! python -m mypy plugin.py", tmp_path)
    assert '"Outputs" has no attribute "logit"' in said
