"""From a YAML file or a mapping to a checked :class:`Spec` in which every default is filled in."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from kdzoo.errors import SpecError, did_you_mean
from kdzoo.extend.bases import ClassPolicy, Loss, ModelSource
from kdzoo.extend.calling import calling
from kdzoo.extend.component import Params
from kdzoo.extend.declared import Declared
from kdzoo.extend.registry import Registry, registry
from kdzoo.spec.document import Document, KeyPath
from kdzoo.spec.expand import expand, refuse_several
from kdzoo.spec.models import (
    KINDS,
    TEACHER_ORIGINS,
    AdapterEntry,
    Entry,
    LayersEntry,
    LossEntry,
    Spec,
    Stage,
    TeacherEntry,
)
from kdzoo.spec.shorthand import STAGE_KEYS, spell_out, spell_out_stage
from kdzoo.spec.torch_entries import ArgumentError, try_optimizer, try_schedule

__all__ = [
    "dump_spec",
    "in_words",
    "read_document",
    "read_documents",
    "read_losses",
    "read_spec",
    "read_study",
]

_WORDS = {
    "a valid array": "a list",
    "an object": "a mapping of keys",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
}

_PLAIN = {"str", "int", "float", "bool"}  # what pydantic calls the types of a union

LEARNERS = ("student", "losses")
"""What can learn in a stage."""


def read_spec(
    source: str | Path | Mapping[str, Any] | Spec,
    overrides: Iterable[str] = (),
    *,
    plugins: Registry | None = None,
) -> Spec:
    """Read and check a spec.

    Args:
        source: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, applied in this order.
        plugins: where components come from; by default everything installed.

    Returns:
        The spec with every default filled in, those of the components too, and with absolute
        paths.

    Raises:
        SpecError: one line per problem: file, line, key, what is wrong, what would be right.
    """
    document, parents = read_document(source, overrides)
    return _spec(document, plugins or registry(), parents)


def read_study(
    source: str | Path | Mapping[str, Any] | Spec, overrides: Iterable[str] = ()
) -> tuple[Spec, ...]:
    """Read and check a spec of one run or of several: ``seeds``, and ``sweep`` over any keys.

    Args:
        source: a YAML file, or the same as a mapping.
        overrides: ``key.path=value`` each, applied in this order, before ``sweep``.

    Returns:
        A spec for each run: the cells of the grid in the order of the file, the last key fastest,
        and of each cell its seeds.

    Raises:
        SpecError: as :func:`read_spec`; all cells are read before this returns.
    """
    document, parents = read_document(source, overrides)
    return read_documents(expand(document), parents)


def read_documents(documents: Iterable[Document], parents: tuple[Path, ...]) -> tuple[Spec, ...]:
    """Check documents of one run each.

    Raises:
        SpecError: as :func:`read_spec`.
    """
    return tuple(_spec(document, registry(), parents) for document in documents)


def read_losses(entries: Iterable[str | Mapping[str, Any]]) -> tuple[LossEntry, ...]:
    """The loss entries of a spec, checked on their own.

    Raises:
        SpecError: as :func:`read_spec`.
    """
    if isinstance(entries, str | Mapping):
        raise SpecError(f"losses must be a list of names and mappings, not {entries!r}")
    document = Document.of({"train": {"epochs": 1}, "losses": list(entries)})
    spell_out_stage(document.data)
    reader = _Reader(document, registry(), short=False)
    stage = reader.validate(Stage)
    stage = reader.stage((), stage, checked=("losses",))
    reader.finish()
    return stage.losses


def dump_spec(spec: Spec, *others: Spec) -> str:
    """The spec as YAML that :func:`read_spec` reads back to an equal one; with others, which differ
    in their seed alone, what :func:`read_study` reads back to all of them."""
    data = _plain(spec)
    if len(spec.stages) == 1:
        (stage,) = data.pop("stages")
        data = {**data, **stage}
    if others:
        del data["seed"]
        data["seeds"] = [one.seed for one in (spec, *others)]
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(data, stream)
    return str(stream.getvalue())


def read_document(
    source: str | Path | Mapping[str, Any] | Spec,
    overrides: Iterable[str] = (),
    parents: tuple[Path, ...] = (),
) -> tuple[Document, tuple[Path, ...]]:
    """A document with its short forms spelt out, and the files that it is read on behalf of."""
    if isinstance(source, Spec):
        document = Document.of(_plain(source))
    elif isinstance(source, Mapping):
        document = Document.of(source)
    else:
        path = _resolved(Path(), str(source))
        document = Document.read(path)
        parents = (*parents, path)
    spell_out(document.data)
    _fetch_chapter(document)
    for assignment in overrides:
        document.set(assignment)
        spell_out(document.data)
        _fetch_chapter(document)
    return document, parents


def _fetch_chapter(document: Document) -> None:
    """The ``tune`` chapter may stand in a file of its own, relative to the spec."""
    if isinstance(name := document.data.get("tune"), str):
        document.graft("tune", Document.read(_resolved(document.directory, name)))


def _spec(document: Document, plugins: Registry, parents: tuple[Path, ...]) -> Spec:
    refuse_several(document)
    document = document.copy()
    document.data.pop("tune", None)  # it is about other runs than this one
    short = "stages" not in document.data
    reader = _Reader(document, plugins, short)
    if short:
        moved = {key: document.data[key] for key in STAGE_KEYS if key in document.data}
        rest = {key: value for key, value in document.data.items() if key not in STAGE_KEYS}
        spec = reader.validate(Spec, {**rest, "stages": [moved]})
    else:
        spec = reader.validate(Spec)
    spec = reader.spec(spec, parents)
    reader.finish()
    return spec


class _Reader:
    """Checks one document and collects what is wrong with it."""

    def __init__(self, document: Document, plugins: Registry, short: bool) -> None:
        self.document = document
        self.plugins = plugins
        self.short = short  # whether the keys of the only stage stand at the top
        self.problems: list[str] = []

    def finish(self) -> None:
        if self.problems:
            raise SpecError("\n".join(dict.fromkeys(self.problems)))

    def problem(self, path: KeyPath, message: str, key: str | None = None) -> None:
        if self.short and path[:2] == ("stages", 0):
            path = path[2:]
        self.problems.append(self.document.error(path, message, key))

    def validate(self, model: type[_Model], data: Any = None) -> _Model:
        """The document in the spec's own keys; problems with these are raised at once."""
        try:
            text = json.dumps(self.document.data if data is None else data)
        except TypeError as error:
            raise SpecError(
                f"{self.document.name}: {error}; use plain numbers, text, lists"
            ) from error
        try:
            # Validated as JSON: there a list may stand for a tuple although types are strict.
            return model.model_validate_json(text)
        except ValidationError as error:
            for path, message in _messages(error, lambda path: set(_fields_at(model, path))):
                self.problem(path, message)
            self.finish()
            raise

    def spec(self, spec: Spec, parents: tuple[Path, ...]) -> Spec:
        update: dict[str, Any] = {
            "data": self.entry(("data",), spec.data),
            "student": self.model(("student",), spec.student),
            "observers": tuple(
                self.entry(("observers", i), entry) for i, entry in enumerate(spec.observers)
            ),
            "stages": tuple(
                self.stage(("stages", i), stage) for i, stage in enumerate(spec.stages)
            ),
        }
        uses = [entry.use for entry in spec.observers]
        for i, use in enumerate(uses):
            if use in uses[:i]:
                self.problem(("observers", i), f'"{use}" stands here for the second time')
        total = sum(stage.train.epochs for stage in spec.stages)
        if spec.stop_epoch is not None and spec.stop_epoch > total:
            self.problem(("stop_epoch",), f"the run has {total} epochs and ends there by itself")
        if spec.teacher is None:
            self.no_teacher(spec)
        elif spec.teacher.run is not None:
            update["teacher"] = self.teacher_run(spec.teacher, parents)
        else:
            teacher = self.model(("teacher",), spec.teacher)
            if teacher.train is None and teacher.checkpoint is None:
                self.need_pretrained(teacher)
            if teacher.train is not None:
                stage = self.stage(("teacher",), Stage(train=teacher.train, losses=teacher.losses))
                self.need_label_terms(
                    ("teacher",), stage, "a teacher that is trained here has none; remove the loss"
                )
                teacher = teacher.model_copy(update={"losses": stage.losses})
            update["teacher"] = teacher
        self.policies_needs(spec, update["stages"])
        return spec.model_copy(update=update)

    def stage(
        self, path: KeyPath, stage: Stage, checked: tuple[str, ...] = ("losses", "policy", "train")
    ) -> Stage:
        losses = tuple(
            self.loss((*path, "losses", i), entry) for i, entry in enumerate(stage.losses)
        )
        losses = self.label_weights(losses)
        ids = [entry.id for entry in losses]
        for i, name in enumerate(ids):
            if name in ids[:i]:
                message = f'another loss has the id "{name}"; give one of them an `id` of its own'
                self.problem((*path, "losses", i), message)
            if name == "total":
                self.problem((*path, "losses", i), "`total` is the sum of all; choose another id")
        if all(entry.weight == 0 for entry in losses):
            self.problem((*path, "losses"), "all weights are 0: there is nothing to learn from")
        for i, prefix in enumerate(stage.learn):
            if (first := prefix.split(".")[0]) not in LEARNERS:
                self.problem((*path, "learn", i), f"unknown part{did_you_mean(first, LEARNERS)}")
        if not stage.learn:
            self.problem((*path, "learn"), "is empty: name what learns, student or losses")
        policy = stage.policy
        if "policy" in checked:
            policy = self.entry((*path, "policy"), policy)
        if "train" in checked:
            self.train((*path, "train"), stage)
        return stage.model_copy(update={"losses": losses, "policy": policy})

    def entry(self, path: KeyPath, entry: _Entry) -> _Entry:
        """An entry with its component's defaults filled in."""
        kind = KINDS[type(entry)]
        known = {*type(entry).model_fields}
        try:
            params = self.plugins.params(kind, entry.use, entry.params)
        except SpecError as error:
            self.problem(path, str(error), "use")
            return entry
        except ValidationError as error:
            component: type[Params] = self.plugins.find(kind, entry.use).Params
            known |= set(component.model_fields)
            what = f'parameter of {kind} "{entry.use}"'
            for tail, message in _messages(error, lambda tail: known if not tail else set(), what):
                self.problem((*path, *tail), message)
            return entry
        return entry.model_copy(update=params.model_dump(mode="json"))

    def model(self, path: KeyPath, entry: _Entry) -> _Entry:
        entry = self.entry(path, entry)
        checkpoint = getattr(entry, "checkpoint", None)
        if checkpoint is not None:
            file = _resolved(self.document.directory, checkpoint)
            if not _is_file(file):
                self.problem((*path, "checkpoint"), f"{file} is not there, or is no file")
            entry = entry.model_copy(update={"checkpoint": str(file)})
        return entry

    def loss(self, path: KeyPath, entry: LossEntry) -> LossEntry:
        before = len(self.problems)
        entry = self.entry(path, entry)
        if len(self.problems) > before:
            return entry
        loss: type[Loss] = self.plugins.find(Loss.kind, entry.use)
        published: dict[str, Any] = {"warmup_epochs": loss.default_warmup_epochs}
        if loss.guidance == "teacher":
            published["weight"] = loss.default_weight
        given = entry.model_fields_set
        entry = entry.model_copy(update={k: v for k, v in published.items() if k not in given})
        if entry.layers is None:
            pairs = tuple(
                LayersEntry(student=p.student, teacher=p.teacher) for p in loss.default_layers
            )
            entry = entry.model_copy(update={"layers": pairs or None})
        elif not loss.default_layers:
            self.problem((*path, "layers"), f'loss "{entry.use}" compares logits, not layers')
        elif not entry.layers:
            self.problem((*path, "layers"), "is empty; name at least one pair of layers")
        if entry.adapter is not None and loss.default_adapter is None:
            self.problem((*path, "adapter"), f'loss "{entry.use}" takes no adapter')
        adapter = entry.adapter or (loss.default_adapter and AdapterEntry(use=loss.default_adapter))
        if adapter:
            adapter = self.entry((*path, "adapter"), adapter)
            entry = entry.model_copy(update={"adapter": adapter})
        return entry

    def label_weights(self, losses: tuple[LossEntry, ...]) -> tuple[LossEntry, ...]:
        """The losses, with the weights that label terms have by default: their own, times what the
        teacher's terms beside them were published with (1 where these differ)."""
        beside = {
            self.plugins.find(Loss.kind, entry.use).default_label_weight
            for entry in losses
            if self._guidance(entry) == "teacher"
        }
        factor = beside.pop() if len(beside) == 1 else 1.0
        filled = []
        for entry in losses:
            if self._guidance(entry) == "label" and "weight" not in entry.model_fields_set:
                own = self.plugins.find(Loss.kind, entry.use).default_weight
                entry = entry.model_copy(update={"weight": own * factor})
            filled.append(entry)
        return tuple(filled)

    def train(self, path: KeyPath, stage: Stage) -> None:
        """Try the optimizer and the schedule, through all epochs."""
        train = stage.train
        tried = "optimizer"
        try:
            optimizer = try_optimizer(train.optimizer)
            tried = "schedule"
            try_schedule(train.schedule, optimizer, train.epochs)
        except SpecError as error:
            key = error.key if isinstance(error, ArgumentError) else None
            self.problem((*path, tried), str(error), key)

    def no_teacher(self, spec: Spec) -> None:
        for i, stage in enumerate(spec.stages):
            path: KeyPath = ("stages", i)
            self.need_label_terms(
                path, stage, "a spec without a teacher has none; add `teacher`, or remove the loss"
            )
        if spec.baseline:
            self.problem(("baseline",), "a run without a teacher is its own baseline; remove it")

    def need_pretrained(self, teacher: TeacherEntry) -> None:
        if self.problems:  # its parameters may be what is wrong
            return
        try:
            source: ModelSource = self.plugins.make(ModelSource.kind, teacher.use, teacher.params)
            with calling(f'model "{teacher.use}"'):
                pretrained = source.pretrained()
        except SpecError as error:
            self.problem(("teacher",), str(error))
            return
        if not pretrained:
            self.problem(("teacher",), TEACHER_ORIGINS)

    def policies_needs(self, spec: Spec, stages: tuple[Stage, ...]) -> None:
        if self.problems:  # their parameters may be what is wrong
            return
        for i, stage in enumerate(stages):
            entry, path = stage.policy, ("stages", i, "policy")
            policy: ClassPolicy = self.plugins.make(ClassPolicy.kind, entry.use, entry.params)
            declared = Declared.by(policy)
            if declared.needs_baseline and spec.teacher is None:
                message = (
                    f'policy "{entry.use}" compares with a baseline run, which a run without a '
                    "teacher does not have; add `teacher`, or use `policy: all`"
                )
                self.problem(path, message)
                continue
            for what in declared.missing(
                baseline=spec.baseline, validation=spec.data.validation > 0
            ):
                self.problem(path, f'policy "{entry.use}" {what}')

    def need_label_terms(self, path: KeyPath, stage: Stage, what: str) -> None:
        for i, entry in enumerate(stage.losses):
            if self._guidance(entry) == "teacher":
                message = f'loss "{entry.use}" follows a teacher, and {what}'
                self.problem((*path, "losses", i), message)

    def teacher_run(self, teacher: Any, parents: tuple[Path, ...]) -> Any:
        file = _resolved(self.document.directory, teacher.run)
        if file in parents:
            chain = " -> ".join(path.name for path in (*parents[parents.index(file) :], file))
            self.problem(("teacher", "run"), f"the specs refer to each other: {chain}")
            return teacher
        try:
            document, parents = read_document(file, (), parents)
            other = _spec(document, self.plugins, parents)
        except SpecError as error:
            self.problem(("teacher", "run"), f"{file.name} cannot be used:\n    {error}")
            return teacher
        if teacher.epoch is not None and teacher.epoch > other.epochs:
            self.problem(("teacher", "epoch"), f"{file.name} ends after {other.epochs} epochs")
        return teacher.model_copy(update={"run": str(file)})

    def _guidance(self, entry: LossEntry) -> str | None:
        try:
            loss: type[Loss] = self.plugins.find(Loss.kind, entry.use)
        except SpecError:  # reported where the entry itself was checked
            return None
        return loss.guidance


_Entry = typing.TypeVar("_Entry", bound=Entry)
_Model = typing.TypeVar("_Model", bound=BaseModel)


def _plain(value: Any) -> Any:
    """A spec as data that reads back to an equal one."""
    if isinstance(value, TeacherEntry) and value.run is not None:
        return {"run": value.run} | ({} if value.epoch is None else {"epoch": value.epoch})
    if isinstance(value, BaseModel):
        # What is None among the spec's own keys was not given; among params it may be a choice.
        own = {key: getattr(value, key) for key in type(value).model_fields}
        if isinstance(value, TeacherEntry) and value.train is None:
            del own["losses"]  # which no training has
        given = {key: item for key, item in own.items() if item is not None}
        return {key: _plain(item) for key, item in {**given, **(value.model_extra or {})}.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _resolved(directory: Path, name: str) -> Path:
    """An absolute path; the name itself where it cannot be one."""
    try:
        return (directory / name).resolve()
    except (OSError, ValueError, RuntimeError):
        return directory / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _messages(
    error: ValidationError, known_at: Callable[[KeyPath], set[str]], what: str = "key"
) -> Iterator[tuple[KeyPath, str]]:
    """Pydantic's findings in our words."""
    items = error.errors()
    for item in items:
        path: KeyPath = item["loc"]
        if path[-1:] and path[-1] in _PLAIN:
            several = [other for other in items if other["loc"][:-1] == path[:-1]]
            if len(several) > 1:  # what each type of a union wants: said once, of the key
                if item is several[0]:
                    wanted = [in_words(one["msg"]).removeprefix("must be ") for one in several]
                    yield path[:-1], f"must be {' or '.join(wanted)}, not {item['input']!r}"
                continue
        if item["type"] == "too_short" and any(other["loc"][:-1] == path for other in items):
            continue  # only because what was in it is wrong
        if item["type"] == "extra_forbidden":
            known = known_at(path[:-1])
            if path[-1] in known and path[-1] in STAGE_KEYS:
                yield path, "stands beside `stages`; move it into the stages"
                continue
            yield path, f"unknown {what}{did_you_mean(str(path[-1]), known)}"
        elif item["type"] == "missing":
            yield path, f"is missing{_remedy(path, item['input'])}"
        elif item["type"] == "string_pattern_mismatch":
            yield path, f"may have letters, digits, dashes and underscores, not {item['input']!r}"
        elif item["type"] == "value_error":
            yield path, str(item["ctx"]["error"])
        elif item["type"] == "string_type" and isinstance(item["input"], int | float):
            yield path, f"must be text, not {item['input']!r}; put it in quotes"
        else:
            yield path, f"{in_words(item['msg'])}, not {item['input']!r}"


def _remedy(path: KeyPath, entry: Any) -> str:
    """What to write where ``use`` is missing, since a name stands in its place: ``kd: {...}``."""
    if path[-1] == "use" and isinstance(entry, dict) and len(entry) == 1:
        ((name, params),) = entry.items()
        if isinstance(params, dict):
            return f"; write {{use: {name}, ...}}"
    return ""


def in_words(message: str) -> str:
    """Pydantic's message as one about a key of a YAML file."""
    message = message.replace("Input should", "must")
    message = re.sub(r"^\w+ should have (at \w+ \d+ \w+).*", r"must have \1", message)
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message[0].lower() + message[1:]


def _fields_at(model: type[BaseModel], path: KeyPath) -> Iterator[str]:
    """The keys that may stand at a path of a model."""
    here: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str):
            if here is None or part not in here.model_fields:
                return
            here = _model_in(here.model_fields[part].annotation)
    if here is not None:
        yield from here.model_fields
        if here is Spec:
            yield from STAGE_KEYS


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None
