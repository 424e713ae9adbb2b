"""The ``tune`` chapter of a spec: which keys are searched, and how."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kdzoo.errors import SpecError, did_you_mean
from kdzoo.extend.ranges import CHOICES, RANGE, Choices, Domain, Range
from kdzoo.extend.registry import registry
from kdzoo.spec.document import Document
from kdzoo.spec.expand import expand
from kdzoo.spec.models import (
    KINDS,
    NO_SETTING,
    AdapterEntry,
    DataEntry,
    Entry,
    LossEntry,
    ModelEntry,
    PolicyEntry,
    Spec,
    TeacherEntry,
    TorchEntry,
)
from kdzoo.spec.read import in_words, read_document, read_documents
from kdzoo.spec.shorthand import spell_out
from kdzoo.spec.torch_entries import argument_names

__all__ = ["AGAINST_BASELINE", "SearchEntry", "Tune", "Tuning", "read_tuning"]

Objective = Literal["accuracy", "worst_class", "worst_tenth", "harm", "hurt_classes"]
AGAINST_BASELINE = frozenset({"harm", "hurt_classes"})  # the fewer the better

_ENTRIES: dict[str, type[Entry]] = {
    "adapter": AdapterEntry,
    "data": DataEntry,
    "losses": LossEntry,
    "optimizer": TorchEntry,
    "policy": PolicyEntry,
    "schedule": TorchEntry,
    "student": ModelEntry,
    "teacher": TeacherEntry,
}
"""The class of the entry, or of the entries, that stands at a key."""

_NOT_TUNED = {
    **dict.fromkeys((*NO_SETTING, "baseline"), "it is no setting"),
    **dict.fromkeys(
        ("data", "data.root", "data.split_seed", "data.use", "data.validation"),
        "what is measured would change with it",
    ),
    **dict.fromkeys(
        ("data_seed", "seed"), "list `seeds` instead: each trial is the mean over them"
    ),
}


class SearchEntry(BaseModel):
    """A sampler or a pruner of Optuna's, by name, with its own arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str = Field(description="The name: that of Optuna's class without Sampler or Pruner.")

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys beside ``use``."""
        return dict(self.model_extra or {})


class Tune(BaseModel):
    """Which keys ``kdzoo tune`` searches, and how: see the page on tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    space: Literal["default"] | dict[str, Any] = Field(
        description="A range ({low, high}, and step or log) or {choices: [...]} for each key, "
        "written as for --set. default: the ranges that the spec's components carry."
    )
    objective: tuple[Objective, ...] = Field(
        ("accuracy",),
        min_length=1,
        description="What is measured on the validation images after the last epoch; with several, "
        "Pareto.",
    )
    sampler: SearchEntry = Field(
        SearchEntry(use="tpe"), description="One of optuna.samplers (tpe, gp, cmaes, nsgaii, ...)."
    )
    pruner: SearchEntry | None = Field(
        None,
        description="One of optuna.pruners (median, hyperband, ...), asked after each epoch; "
        "wilcoxon after each seed. By default median, and none with several objectives.",
    )
    trials: int = Field(20, ge=1, description="How many trials the study has.")
    storage: str | None = Field(
        None,
        description="A database (sqlite:///FILE, postgresql://...), or the file of a journal; by "
        "default an SQLite file in the study's directory.",
    )
    heartbeat: int = Field(
        60,
        ge=1,
        description="Seconds between two signs of life of a worker in a database; when two are "
        "missing, its trial is run again.",
    )


@dataclass(frozen=True)
class Tuning:
    """A study: the spec that is tuned, and what may be changed in it.

    Attributes:
        document: the spec, without its chapter.
        parents: the files that it is read on behalf of.
        tune: the chapter.
        space: what each key may be, components before their params.
    """

    document: Document
    parents: tuple[Path, ...]
    tune: Tune
    space: Mapping[str, Domain]
    origins: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def base(self) -> tuple[Spec, ...]:
        """The spec as it is, once for each seed."""
        return read_documents(expand(self.document), self.parents)

    def derive(self, choose: Callable[[str, Domain], Any]) -> Document:
        """The spec with a value for each key; what is below a component that was not chosen is not
        asked for."""
        document = self.document.copy()
        for key, domain in self.space.items():
            if _asked(document, key, self.space):
                document.put(key, choose(key, domain), self.origins[key])
                spell_out(document.data)
        return document

    def specs(self, values: Mapping[str, Any]) -> tuple[Spec, ...]:
        """The spec with these values, once for each seed.

        Raises:
            SpecError: they cannot stand together.
        """
        return read_documents(expand(self.derive(_taken_from(values))), self.parents)

    def longest(self) -> int:
        """The epochs of the longest run that a trial may have."""
        most = {
            key: max(d.choices) if isinstance(d, Choices) and _numbers(d.choices) else d.ends[-1]
            for key, d in self.space.items()
        }
        combinations = _combinations(self.space)
        return max(self.specs({**most, **fixed})[0].epochs for fixed in combinations)

    def structures(self) -> Iterator[tuple[Spec, ...]]:
        """The specs with each combination of the components that other keys lie below, and with
        each of the others that can be chosen."""
        first = {key: domain.ends[0] for key, domain in self.space.items()}
        above: set[str] = set()
        for fixed in _combinations(self.space):
            above |= set(fixed)
            yield self.specs({**first, **fixed})
        for key, domain in self.space.items():
            if isinstance(domain, Choices) and key not in above:
                for choice in domain.choices[1:]:
                    if isinstance(choice, str | list | dict):
                        yield self.specs({**first, key: choice})


def read_tuning(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Tuning:
    """Read and check a spec and its ``tune`` chapter.

    Args:
        source: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, applied in this order; ``tune=FILE`` names a file with
            the chapter.

    Raises:
        SpecError: one line per problem, with file, line and key.
    """
    document, parents = read_document(source, overrides)
    if document.data.get("tune") is None:
        raise SpecError(
            f"{document.name}: has no `tune`; add the chapter, or name a file with it: "
            "--set tune=space.yaml"
        )
    if "sweep" in document.data:
        raise SpecError(document.error(("sweep",), "stands beside `tune`; remove one of the two"))
    problems: list[str] = []
    tune = _chapter(document, problems)
    if tune is None:
        raise SpecError("\n".join(problems))
    plain = document.copy()
    plain.data.pop("tune")
    base = read_documents(expand(plain), parents)
    if base[0].data.validation == 0:
        raise SpecError(
            document.error(("data", "validation"), "is 0: trials are measured on validation images")
        )
    if len(set(tune.objective)) < len(tune.objective):
        raise SpecError(document.error(("tune", "objective"), "has the same one twice"))
    compared = sorted(AGAINST_BASELINE & set(tune.objective))
    if compared and not base[0].baseline:
        problem = f"{compared[0]} is measured against the baseline; say `baseline: true`"
        raise SpecError(document.error(("tune", "objective"), problem))
    space, origins = _space(document, tune, base[0], problems)
    if problems:
        raise SpecError("\n".join(problems))
    tuning = Tuning(plain, parents, tune, space, origins)
    whole = _check(tuning, problems)
    if problems:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    fitted = {
        key: Range(low=float(d.low), high=float(d.high), step=d.step, log=d.log)
        if isinstance(d, Range) and key not in whole
        else d
        for key, d in space.items()
    }
    return Tuning(plain, parents, tune, fitted, origins)


def _chapter(document: Document, problems: list[str]) -> Tune | None:
    data = document.data["tune"]
    if isinstance(data, dict):
        data = dict(data)
        for key in ("sampler", "pruner"):
            if isinstance(data.get(key), str):
                data[key] = {"use": data[key]}
        if isinstance(data.get("objective"), str):
            data["objective"] = [data["objective"]]
    try:
        return Tune.model_validate_json(json.dumps(data))
    except ValidationError as error:
        found = error.errors()
        within = {item["loc"][:1] for item in found if len(item["loc"]) > 1}
        for item in found:
            path = ("tune", *item["loc"])
            if item["type"] == "too_short" and item["loc"][:1] in within:
                continue  # its one item is what is wrong
            if path[1:2] == ("space",) and len(path) > 2:  # the one for each of its two forms
                path = path[:2]
                message = "must be `default`, or a range or {choices: [...]} for each key, not "
                message += repr(data["space"])
            elif item["type"] == "extra_forbidden":
                message = f"unknown key{did_you_mean(str(path[-1]), Tune.model_fields)}"
            elif item["type"] == "missing":
                message = "is missing"
            elif item["type"] == "too_short":
                message = "is empty"
            else:
                message = f"{in_words(item['msg'])}, not {item['input']!r}"
            problems.append(document.error(path, message))
        problems[:] = dict.fromkeys(problems)
        return None


def _space(
    document: Document, tune: Tune, base: Spec, problems: list[str]
) -> tuple[dict[str, Domain], dict[str, str]]:
    if tune.space == "default":
        found = dict(_carried(base))
        origin = document.origin(("tune", "space"))
        if not found:
            problems.append(
                f"{origin}: tune.space: no component of this spec carries a range; name the keys"
            )
        return found, dict.fromkeys(found, origin)
    space: dict[str, Domain] = {}
    if not tune.space:
        problems.append(document.error(("tune", "space"), "is empty: there is nothing to tune"))
    for key in sorted(tune.space, key=lambda key: key.count(".")):
        path = ("tune", "space", key)
        given = tune.space[key]
        bare = re.sub(r"^stages\.\d+\.", "", key)
        if bare in _NOT_TUNED or key.split(".")[0] in ("tune", "seeds", "sweep"):
            reason = _NOT_TUNED.get(bare, "it is no setting")
            problems.append(document.error(path, f"cannot be tuned: {reason}"))
            continue
        if not isinstance(given, dict):
            message = f"must be {{low: ..., high: ...}} or {{choices: [...]}}, not {given!r}"
            problems.append(document.error(path, message))
            continue
        kind = Choices if "choices" in given else Range
        adapter: TypeAdapter[Any] = CHOICES if kind is Choices else RANGE
        try:
            space[key] = adapter.validate_json(json.dumps(given))
        except ValidationError as error:
            for item in error.errors():
                if item["loc"][-1:] == ("int",):  # the same is said of float
                    continue
                where = (*path, *item["loc"][:1])
                if item["type"] == "value_error":
                    message = str(item["ctx"]["error"])
                elif item["type"] == "unexpected_keyword_argument":
                    known = [f.name for f in fields(kind)]
                    message = f"unknown key{did_you_mean(str(where[-1]), known)}"
                    if kind is Choices:
                        message += "; a range is {low: ..., high: ...}, and choices stand alone"
                elif item["type"] == "missing":
                    message = "is missing"
                elif item["type"] == "too_short":
                    message = "is empty"
                else:
                    message = f"{in_words(item['msg'])}, not {item['input']!r}"
                problems.append(document.error(where, message))
    return space, {key: document.origin(("tune", "space", key)) for key in space}


def _carried(base: Spec) -> Iterator[tuple[str, Domain]]:
    """The ranges that the components of a spec carry."""
    entries: list[tuple[str, Entry]] = [("student", base.student), ("data", base.data)]
    ids = [entry.id for stage in base.stages for entry in stage.losses]
    for number, stage in enumerate(base.stages):
        start = "" if len(base.stages) == 1 else f"stages.{number}."
        entries.append((f"{start}policy", stage.policy))
        for loss in stage.losses:
            if ids.count(loss.id) > 1:  # its params must be the same in all its stages
                continue
            entries.append((f"{start}losses.{loss.id}", loss))
            if loss.adapter is not None:
                entries.append((f"{start}losses.{loss.id}.adapter", loss.adapter))
    for path, entry in entries:
        params = registry().find(KINDS[type(entry)], entry.use).Params
        for name, info in params.model_fields.items():
            for domain in info.metadata:
                if isinstance(domain, Range | Choices):
                    yield f"{path}.{name}", domain


def _check(tuning: Tuning, problems: list[str]) -> set[str]:
    """Read the spec at both ends of each range and with each choice, under each combination of the
    components that can be chosen.

    Returns:
        The keys that take whole numbers only.
    """
    asked: set[str] = set()
    whole: set[str] = {
        key
        for key, domain in tuning.space.items()
        if isinstance(domain, Range) and domain.whole and domain.step is not None
    }
    for fixed in _combinations(tuning.space):
        values = {key: fixed.get(key, domain.ends[0]) for key, domain in tuning.space.items()}
        here: dict[str, Domain] = {}
        try:
            for key, domain in tuning.space.items():
                if _asked(tuning.derive(_taken_from(values)), key, tuning.space):
                    here[key] = domain
        except SpecError as error:
            problems.append(str(error))
            continue
        asked |= set(here)
        for key, domain in here.items():
            for value in [fixed[key]] if key in fixed else domain.ends:
                try:
                    tuning.specs({**values, key: value})
                except SpecError as error:
                    problems.append(str(error))
            if isinstance(domain, Range) and domain.whole and not problems:
                try:
                    tuning.specs({**values, key: domain.low + 0.5})
                except SpecError:
                    whole.add(key)
    for key in tuning.space:
        if key not in asked and not problems:
            problems.append(
                f"{tuning.origins[key]}: {key}: belongs to none of the components to choose from"
            )
    return whole


def _taken_from(values: Mapping[str, Any]) -> Callable[[str, Domain], Any]:
    return lambda key, _: values[key]


def _combinations(space: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    """The combinations of the choices that other keys of the space lie below."""
    above = {k: d for k, d in space.items() if any(o.startswith(f"{k}.") for o in space)}
    for combination in itertools.product(*(domain.ends for domain in above.values())):
        yield dict(zip(above, combination, strict=True))


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _asked(document: Document, key: str, space: Mapping[str, Domain]) -> bool:
    """Whether a key can be set, as far as that depends on what was chosen above it."""
    parts = key.split(".")
    if not any(".".join(parts[:end]) in space for end in range(1, len(parts))):
        return True
    here: Any = document.data
    for number, part in enumerate(parts):
        if isinstance(here, list):
            names = [isinstance(e, dict) and (e.get("id") or e.get("use")) for e in here]
            if part in names:
                here = here[names.index(part)]
            elif part.isdecimal() and int(part) < len(here):
                here = here[int(part)]
            else:
                return False
        elif isinstance(here, dict):
            if number == len(parts) - 1 and isinstance(here.get("use"), str):
                words = parts[:-1] if parts[-3:-2] != ["losses"] else parts[:-2]
                return part in _keys_of(_ENTRIES.get(words[-1]), words[-1], here["use"])
            here = here.get(part)
        else:
            return False
    return True


def _keys_of(entry: type[Entry] | None, word: str, use: str) -> set[str]:
    if entry is None:
        return set()
    if entry is TorchEntry:
        return argument_names(word, use)
    try:
        component = registry().find(KINDS[entry], use)
    except SpecError:  # said where the component is chosen
        return set()
    return {*entry.model_fields, *component.Params.model_fields}
