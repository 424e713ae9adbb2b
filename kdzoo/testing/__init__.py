"""The conformance kit: what a component of each kind must do, as tests for whoever wrote one.

:func:`conformance` for pytest, :func:`run_checks` without it. The bundled components pass the same
checks. pytest is needed by the former alone.
"""

from kdzoo.testing.checks import Result as Result
from kdzoo.testing.suite import conformance as conformance
from kdzoo.testing.suite import run_checks as run_checks

__all__ = ["Result", "conformance", "run_checks"]
