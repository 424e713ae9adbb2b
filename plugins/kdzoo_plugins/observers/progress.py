"""Shows a run while it works: a bar in a terminal, a few lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

import kdzoo

__all__ = ["ProgressBar"]

_LINES = 5  # how many lines a run gets where no bar can be drawn


class ProgressBar(kdzoo.Observer):
    """A progress bar with the latest accuracies, on standard error."""

    name = "progress"

    _bar: Progress | None = None
    _task: TaskID
    _loss: float = float("nan")

    def start(self, run: kdzoo.RunInfo, state: Mapping[str, Any] | None) -> None:
        """See :meth:`kdzoo.Observer.start`."""
        self._console = Console(stderr=True)
        if not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.fields[role]:<8}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[epoch]:>7}"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task(
            "",
            total=run.steps,
            completed=run.step,
            role=run.role,
            epoch=f"{run.epoch}/{run.epochs}",
        )
        self._bar.start()

    def steps(
        self, run: kdzoo.RunInfo, first: int, values: Mapping[str, npt.NDArray[np.float32]]
    ) -> None:
        """See :meth:`kdzoo.Observer.steps`."""
        total = values["loss/total"]
        self._loss = float(total.mean())
        if self._bar is not None:
            self._bar.update(self._task, completed=first + len(total) - 1)

    def epoch(self, run: kdzoo.RunInfo, record: kdzoo.EpochRecord) -> None:
        """See :meth:`kdzoo.Observer.epoch`."""
        words = f"loss {self._loss:.3f}"
        for split in ("train", "validation"):
            if (accuracy := record.scalars.get(f"accuracy/{split}")) is not None:
                words += f"  {split} {100 * accuracy:.1f} %"
        if untaught := len(record.curves.untaught):
            words += f"  not taught {untaught}"
        words += f"  loader {100 * record.loader_share:.0f} %"
        progress = f"{record.epoch}/{run.epochs}"
        if self._bar is not None:
            self._bar.update(self._task, description=words, epoch=progress)
        elif record.epoch % max(run.epochs // _LINES, 1) == 0 or record.epoch == run.epochs:
            line = f"{run.role:<8} {progress:>7}  {words}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def end(self, run: kdzoo.RunInfo, error: BaseException | None) -> None:
        """See :meth:`kdzoo.Observer.end`."""
        if self._bar is not None:
            self._bar.stop()


@kdzoo.hookimpl
def kdzoo_observers() -> list[type[kdzoo.Observer]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [ProgressBar]
