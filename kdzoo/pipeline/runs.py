"""From a spec to what came out: of one run, or of several beside each other."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError, LockedError, NonFiniteError, RunError, SpecError
from kdzoo.extend.registry import registry
from kdzoo.pipeline.plan import Run
from kdzoo.pipeline.sessions import Sessions
from kdzoo.report.study import StudyReport, told_apart
from kdzoo.report.study_page import write_study
from kdzoo.spec.models import Spec
from kdzoo.spec.read import read_spec, read_study
from kdzoo.training.directory import RunDirectory
from kdzoo.training.distributed import processes

__all__ = ["Study", "run", "run_study"]

log = logging.getLogger("kdzoo")


@dataclass(frozen=True)
class Study:
    """Finished runs of one spec.

    Attributes:
        directory: where the report on all of them is.
        report: what came out.
        runs: the runs that were finished.
        failures: why the others were not.
    """

    directory: Path
    report: StudyReport
    runs: tuple[Run, ...]
    failures: tuple[KdzooError, ...]


def run(
    spec: str | Path | Mapping[str, Any] | Spec,
    overrides: Iterable[str] = (),
    *,
    runs: str | Path = "runs",
    fresh: bool = False,
) -> Run:
    """Do what a spec says, or finish what was cut off, or find what was done before.

    The teacher and the baseline are runs of their own, in directories of their own, and are found
    again by every spec that would train the same ones. Called in several processes that torchrun
    started, it trains in all of them together; each gets the same back.

    Args:
        spec: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, as with ``--set``.
        runs: the directory of all run directories.
        fresh: start this run over; a finished teacher or baseline is still used.

    Raises:
        KdzooError: see :mod:`kdzoo.errors`.
    """

    sessions = Sessions(Path(runs))

    def one() -> Run:
        resolved = read_spec(spec, overrides)
        registry().warn_of_broken()
        return sessions.do(resolved, fresh=fresh)

    return processes().lead(one, sessions.take_part)


def run_study(
    spec: str | Path | Mapping[str, Any] | Spec,
    overrides: Iterable[str] = (),
    *,
    runs: str | Path = "runs",
    fresh: bool = False,
) -> Study:
    """Do all runs that a spec with ``seeds`` or ``sweep`` stands for, and put them side by side.

    Each is a run as :func:`run` does it; what is finished is found again. A run that another
    process is working on is left for the end. One whose numbers became infinite is left out.

    Args:
        spec: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, as with ``--set``.
        runs: the directory of all run directories; that of the study will be among them.
        fresh: start all these runs over; finished teachers and baselines are still used.

    Raises:
        KdzooError: see :mod:`kdzoo.errors`.
    """
    sessions = Sessions(Path(runs))
    return processes().lead(
        lambda: _run_study(read_study(spec, overrides), sessions, fresh), sessions.take_part
    )


def _run_study(specs: tuple[Spec, ...], sessions: Sessions, fresh: bool) -> Study:
    registry().warn_of_broken()
    identities = [sessions.of(one).identity(one) for one in specs]
    _refuse_the_same_run(specs, identities)
    sessions.put_together(specs)
    told = told_apart([_as_set(one) for one in specs])
    names = [said or one.name for said, one in zip(told, specs, strict=True)]
    done: dict[int, Run] = {}
    failures: list[KdzooError] = []
    postponed: list[tuple[int, Spec]] = []

    def do(number: int, one: Spec, *, fresh: bool = False, wait: bool = False) -> None:
        try:
            done[number] = sessions.do(one, fresh=fresh, wait=wait)
        except NonFiniteError as error:
            log.warning("run %d of %d failed: %s", number, len(specs), error)
            failures.append(NonFiniteError(f"{names[number - 1]}: {error}"))

    for number, one in enumerate(specs, 1):
        log.info("run %d of %d: %s", number, len(specs), names[number - 1])
        try:
            do(number, one, fresh=fresh)
        except LockedError:
            log.info("another process is working on it; it is left for the end")
            postponed.append((number, one))
    for number, one in postponed:
        do(number, one, wait=True)
    finished = tuple(done[number] for number in sorted(done))
    if not finished:
        raise RunError(f"no run of {len(specs)} was finished; the first failed so:\n{failures[0]}")
    identity = hashlib.sha256("".join(identities).encode()).hexdigest()[:10]
    directory = sessions.runs / f"{specs[0].name}-study-{identity}"
    report = write_study(directory, [RunDirectory(one.directory) for one in finished])
    return Study(directory, report, finished, tuple(failures))


def _refuse_the_same_run(specs: Sequence[Spec], identities: Sequence[str]) -> None:
    """What differs between two cells of a sweep must make two runs of them."""
    for number, identity in enumerate(identities):
        if (first := identities.index(identity)) < number:
            one, other = told_apart([_as_set(specs[first]), _as_set(specs[number])])
            raise SpecError(
                f"sweep: run {first + 1} ({one}) and run {number + 1} ({other}) are the same run: "
                "what differs changes nothing that is trained; leave one of the two out"
            )


def _as_set(spec: Spec) -> dict[str, Any]:
    """A spec as plain data, with its keys where ``--set`` finds them."""
    data = spec.model_dump(mode="json")
    if len(spec.stages) == 1:
        (stage,) = data.pop("stages")
        data |= stage
    return data
