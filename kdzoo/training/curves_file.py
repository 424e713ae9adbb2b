"""classes.csv: the teaching curves, a line for each epoch and class."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdzoo.errors import CheckpointError
from kdzoo.extend.contracts import ClassState, Floats, TeachingCurves

__all__ = ["CurvesTable", "read_curves"]

_COLUMNS = (
    "samples",
    "student",
    "teacher",
    "baseline",
    "both_right",
    "agreement",
    "divergence",
    "predicted",
    "similarity",
    "teacher_weight",
    "label_weight",
    "state",
)
_POLICYS = ("teacher_weight", "label_weight", "state")
_ON_VALIDATION = tuple(name for name in _COLUMNS if name not in _POLICYS)  # measured there too
_HEADER = (*_COLUMNS, *(f"validation_{name}" for name in _ON_VALIDATION))


class CurvesTable:
    """The file's content while epochs are added: each is put into words once.

    Args:
        classes: their C names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._parts = [_lines([["epoch", "class", *_HEADER]])]  # the header, then each epoch

    def content(self, curves: TeachingCurves) -> bytes:
        """All of the file. Unknown numbers are left empty; the others read back exactly.

        Args:
            curves: those of the last call, and what came since.
        """
        columns = [getattr(curves, name) for name in _COLUMNS]
        columns += [
            curves.validation and getattr(curves.validation, name) for name in _ON_VALIDATION
        ]
        for epoch in range(len(self._parts) - 1, len(curves.student)):
            rows = []
            for number, name in enumerate(self._classes):
                values = [np.nan if c is None else float(c[epoch, number]) for c in columns]
                said = ("" if np.isnan(value) else repr(value) for value in values)
                row = dict(zip(_HEADER, said, strict=True))
                if row["state"]:
                    row["state"] = ClassState(int(float(row["state"]))).words
                rows.append([epoch + 1, name, *row.values()])
            self._parts.append(_lines(rows))
        return b"".join(self._parts)


def read_curves(path: Path) -> tuple[tuple[str, ...], TeachingCurves]:
    """The class names and the curves (E, C) out of a ``classes.csv``.

    Raises:
        CheckpointError: the file is damaged.
    """
    states = {state.words: str(int(state)) for state in ClassState}
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            header, *rows = reader
        first = [row[1] for row in rows if row[0] == "1"]
        place = header.index("state")
        for row in rows:
            row[place] = states[row[place]] if row[place] else ""
        values = [[float(value or "nan") for value in row[2:]] for row in rows]
        table = np.array(values).reshape(-1, len(first), len(_HEADER))
        columns = {name: table[:, :, header[2:].index(name)] for name in _HEADER}
    except (OSError, ValueError, KeyError, IndexError, csv.Error) as error:
        raise CheckpointError(
            f"{path}: the curves cannot be read ({error}); remove the file, and `kdzoo run` writes "
            "it again"
        ) from error
    curves = _curves(columns)
    if np.isfinite(columns["validation_samples"]).any():
        measured = {name: columns[f"validation_{name}"] for name in _ON_VALIDATION}
        curves = replace(curves, validation=_curves({**columns, **measured}))
    return tuple(first), curves


def _lines(rows: Iterable[Iterable[object]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def _curves(columns: Mapping[str, Floats]) -> TeachingCurves:
    values: dict[str, Any] = {name: columns[name] for name in _COLUMNS}
    return TeachingCurves(**values)
