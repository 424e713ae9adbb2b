"""classes.csv: the teaching curves, a line for each epoch and class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdzoo.errors import CheckpointError
from kdzoo.extend.contracts import TeachingCurves

__all__ = ["curves_as_csv", "read_curves"]

_COLUMNS = (
    "samples",
    "student",
    "teacher",
    "baseline",
    "agreement",
    "divergence",
    "predicted",
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


def read_curves(path: Path) -> tuple[tuple[str, ...], TeachingCurves]:
    """The class names and the curves (E, C) out of a ``classes.csv``.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            header, *rows = reader
        first = [row[1] for row in rows if row[0] == "1"]
        values = [[float(value or "nan") for value in row[2:]] for row in rows]
        columns = np.array(values).reshape(-1, len(first), len(_COLUMNS))
        curves = {name: columns[:, :, header[2:].index(name)] for name in _COLUMNS}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise CheckpointError(
            f"{path}: the curves cannot be read ({error}); remove {path.parent} to train it again"
        ) from error
    return tuple(first), TeachingCurves(**curves)
