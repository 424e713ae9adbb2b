"""One file, several runs: ``seeds``, and ``sweep`` over any keys of the spec.

Both are taken apart before anything is validated, so that each run is an ordinary spec, with its
own directory, and neither key is in any run's hash.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from kdzoo.errors import SpecError
from kdzoo.seeds import stream
from kdzoo.spec.document import Document
from kdzoo.spec.shorthand import spell_out

__all__ = ["STUDY_KEYS", "expand", "refuse_several"]

STUDY_KEYS: dict[str, dict[str, Any]] = {
    "seeds": {
        "description": "Several runs, one for each of these seeds, instead of `seed`. They share "
        "the split, and the teacher that is trained for the first, unless `teacher.seed` is `own`.",
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "minItems": 1,
        "uniqueItems": True,
    },
    "sweep": {
        "description": "Several runs, one for each combination of these values: a list for each "
        "key, written as for --set (student.width, losses.kd.temperature).",
        "type": "object",
        "additionalProperties": {"type": "array", "minItems": 1},
        "minProperties": 1,
    },
}
"""The keys of a file that stands for several runs, as JSON Schema."""

_NOT_SWEPT = {"seed": "list them in `seeds`", "name": "runs of one file share it"}


def expand(document: Document) -> Iterator[Document]:
    """The documents of all runs that a document stands for; itself, if it is one.

    Raises:
        SpecError: ``seeds`` or ``sweep`` is not of the expected form, or an override would be lost.
    """
    seeds, sweep = document.data.get("seeds"), document.data.get("sweep")
    plain = document.copy()
    for key in (*STUDY_KEYS, "tune"):
        plain.data.pop(key, None)
    if seeds is not None:
        _check_seeds(document, seeds)
    for key in sweep if isinstance(sweep, dict) else ():
        if (override := plain.overridden(key)) is not None:
            raise SpecError(
                f"{override}: `sweep` sets {key} in each run anew; change what is swept, or sweep "
                "nothing: --set sweep=null"
            )
    for cell in _cells(document, sweep):
        one = plain.copy()
        for key, (number, value) in cell.items():
            one.put(key, value, document.origin(("sweep", key, number)))
            spell_out(one.data)
        if seeds is None:
            yield one
            continue
        for seed in seeds:
            run = one.copy()
            run.put("seed", seed, document.origin(("seeds",)))
            _share_teacher(run, seeds[0])
            yield run


def refuse_several(document: Document) -> None:
    """Where one run is asked for.

    Raises:
        SpecError: the document stands for several.
    """
    for key in STUDY_KEYS:
        if key in document.data:
            raise SpecError(
                document.error(
                    (key,),
                    "stands for several runs, and one is asked for here; `kdzoo run` and "
                    "kdzoo.run_study do them all",
                )
            )


def _check_seeds(document: Document, seeds: Any) -> None:
    whole = isinstance(seeds, list) and all(type(s) is int and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        message = f"must be a list of different whole numbers, as in [0, 1, 2], not {seeds!r}"
        raise SpecError(document.error(("seeds",), message))
    if "seed" in document.data:
        message = "stands beside `seeds`; remove one of the two"
        raise SpecError(document.error(("seed",), message))


def _cells(document: Document, sweep: Any) -> Iterator[dict[str, tuple[int, Any]]]:
    """Of each run, which of a key's values it has, and the value."""
    if sweep is None:
        yield {}
        return
    if not isinstance(sweep, dict) or not sweep:
        message = "must name keys of the spec, as in {student.width: [4, 8]}"
        raise SpecError(document.error(("sweep",), message))
    for key, values in sweep.items():
        if key in _NOT_SWEPT or key in STUDY_KEYS:
            reason = _NOT_SWEPT.get(key, "it stands for several runs itself")
            raise SpecError(document.error(("sweep", key), f"cannot be swept over: {reason}"))
        if not isinstance(values, list) or not values:
            message = f"must be a list of the values to try, not {values!r}"
            raise SpecError(document.error(("sweep", key), message))
        if any(value in values[:i] for i, value in enumerate(values)):
            raise SpecError(document.error(("sweep", key), "has the same value twice"))
    for combination in itertools.product(*map(enumerate, sweep.values())):
        yield dict(zip(sweep, combination, strict=True))


def _share_teacher(run: Document, first: int) -> None:
    """All seeds learn from the teacher that the first one would have trained for itself."""
    teacher = run.data.get("teacher")
    if isinstance(teacher, dict) and teacher.get("train") is not None:
        teacher.setdefault("seed", stream(first, "teacher"))
