"""classes.csv: the teaching curves, a line for each epoch and class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdzoo.errors import CheckpointError
from kdzoo.extend.contracts import Floats, TeachingCurves

__all__ = ["curves_as_csv", "student_curve"]

_COLUMNS = (
    "samples",
    "student",
    "teacher",
    "baseline",
    "agreement",
    "divergence",
    "teacher_weight",
    "label_weight",
)


def curves_as_csv(classes: Sequence[str], curves: TeachingCurves) -> bytes:
    """The file's content. Unknown numbers are left empty; the others read back exactly."""
    columns = [getattr(curves, name) for name in _COLUMNS]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["epoch", "class", *_COLUMNS])
    for epoch in range(len(curves.student)):
        for number, name in enumerate(classes):
            values = [np.nan if c is None else float(c[epoch, number]) for c in columns]
            writer.writerow([epoch + 1, name, *("" if np.isnan(v) else repr(v) for v in values)])
    return stream.getvalue().encode()


def student_curve(path: Path, num_classes: int) -> Floats:
    """The student's accuracy (E, C) out of a ``classes.csv``.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            values = [float(row["student"] or "nan") for row in csv.DictReader(stream)]
        return np.array(values).reshape(-1, num_classes)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise CheckpointError(
            f"{path}: the curves cannot be read ({error}); remove {path.parent} to train it again"
        ) from error
