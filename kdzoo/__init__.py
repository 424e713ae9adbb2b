"""kdzoo: distillation that says which classes the teacher hurts, and stops teaching those.

Everything public is here, but for the tests of plugins in :mod:`kdzoo.testing`. Names are loaded
at their first use, so that ``import kdzoo`` and ``kdzoo --help`` need no torch.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import Field as Field

    from kdzoo.distill.distiller import Distiller as Distiller
    from kdzoo.distill.distiller import Step as Step
    from kdzoo.distill.network import Network as Network
    from kdzoo.distill.terms import Term as Term
    from kdzoo.distill.terms import terms as terms
    from kdzoo.errors import CheckpointError as CheckpointError
    from kdzoo.errors import DataError as DataError
    from kdzoo.errors import KdzooError as KdzooError
    from kdzoo.errors import LockedError as LockedError
    from kdzoo.errors import NonFiniteError as NonFiniteError
    from kdzoo.errors import PluginError as PluginError
    from kdzoo.errors import ProcessError as ProcessError
    from kdzoo.errors import RunError as RunError
    from kdzoo.errors import SpecError as SpecError
    from kdzoo.errors import did_you_mean as did_you_mean
    from kdzoo.extend.bases import Adapter as Adapter
    from kdzoo.extend.bases import ClassPolicy as ClassPolicy
    from kdzoo.extend.bases import DataSource as DataSource
    from kdzoo.extend.bases import Loss as Loss
    from kdzoo.extend.bases import ModelSource as ModelSource
    from kdzoo.extend.bases import Observer as Observer
    from kdzoo.extend.component import Params as Params
    from kdzoo.extend.contracts import Batch as Batch
    from kdzoo.extend.contracts import ClassState as ClassState
    from kdzoo.extend.contracts import ClassWeights as ClassWeights
    from kdzoo.extend.contracts import EpochRecord as EpochRecord
    from kdzoo.extend.contracts import ImageData as ImageData
    from kdzoo.extend.contracts import ImageFiles as ImageFiles
    from kdzoo.extend.contracts import ImageList as ImageList
    from kdzoo.extend.contracts import LayerPair as LayerPair
    from kdzoo.extend.contracts import Layers as Layers
    from kdzoo.extend.contracts import Normalization as Normalization
    from kdzoo.extend.contracts import Outputs as Outputs
    from kdzoo.extend.contracts import PolicySetting as PolicySetting
    from kdzoo.extend.contracts import RunInfo as RunInfo
    from kdzoo.extend.contracts import Shapes as Shapes
    from kdzoo.extend.contracts import TeachingCurves as TeachingCurves
    from kdzoo.extend.gathering import gathered as gathered
    from kdzoo.extend.hookspecs import API_VERSION as API_VERSION
    from kdzoo.extend.hookspecs import hookimpl as hookimpl
    from kdzoo.extend.ranges import Choices as Choices
    from kdzoo.extend.ranges import Range as Range
    from kdzoo.extend.registry import register as register
    from kdzoo.pipeline.plan import Run as Run
    from kdzoo.pipeline.runs import Study as Study
    from kdzoo.pipeline.runs import run as run
    from kdzoo.pipeline.runs import run_study as run_study
    from kdzoo.pipeline.student import load_student as load_student
    from kdzoo.report.summary import Report as Report
    from kdzoo.spec.models import Spec as Spec
    from kdzoo.spec.read import read_spec as read_spec
    from kdzoo.training.curves_file import read_curves as read_curves
    from kdzoo.tuning.study import Tuned as Tuned
    from kdzoo.tuning.study import tune as tune

_HOMES = {
    "pydantic": ["Field"],
    "kdzoo.distill.distiller": ["Distiller", "Step"],
    "kdzoo.distill.network": ["Network"],
    "kdzoo.distill.terms": ["Term", "terms"],
    "kdzoo.errors": [
        "CheckpointError",
        "DataError",
        "KdzooError",
        "LockedError",
        "NonFiniteError",
        "PluginError",
        "ProcessError",
        "RunError",
        "SpecError",
        "did_you_mean",
    ],
    "kdzoo.extend.bases": [
        "Adapter",
        "ClassPolicy",
        "DataSource",
        "Loss",
        "ModelSource",
        "Observer",
    ],
    "kdzoo.extend.component": ["Params"],
    "kdzoo.extend.contracts": [
        "Batch",
        "ClassState",
        "ClassWeights",
        "EpochRecord",
        "ImageData",
        "ImageFiles",
        "ImageList",
        "LayerPair",
        "Layers",
        "Normalization",
        "Outputs",
        "PolicySetting",
        "RunInfo",
        "Shapes",
        "TeachingCurves",
    ],
    "kdzoo.extend.gathering": ["gathered"],
    "kdzoo.extend.hookspecs": ["API_VERSION", "hookimpl"],
    "kdzoo.extend.ranges": ["Choices", "Range"],
    "kdzoo.extend.registry": ["register"],
    "kdzoo.report.summary": ["Report"],
    "kdzoo.pipeline.plan": ["Run"],
    "kdzoo.pipeline.runs": ["Study", "run", "run_study"],
    "kdzoo.pipeline.student": ["load_student"],
    "kdzoo.spec.models": ["Spec"],
    "kdzoo.spec.read": ["read_spec"],
    "kdzoo.training.curves_file": ["read_curves"],
    "kdzoo.tuning.study": ["Tuned", "tune"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])

_DEPRECATED: dict[str, tuple[str, str]] = {}
"""Names that still work: what each is called now, and the version in which the old name goes."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kdzoo")
    if name in _DEPRECATED:
        new, end = _DEPRECATED[name]
        warnings.warn(
            f"kdzoo.{name} is kdzoo.{new} now; the old name goes in version {end}",
            DeprecationWarning,
            stacklevel=2,
        )
        return __getattr__(new)  # not kept under the old name: each use warns
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kdzoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
