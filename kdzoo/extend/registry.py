"""Finds the plugins, keeps the broken ones away from the rest, and makes components by name."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo

from kdzoo.errors import PluginError, SpecError, did_you_mean
from kdzoo.extend.bases import Adapter, DataSource, Loss
from kdzoo.extend.calling import calling
from kdzoo.extend.component import Component, Params
from kdzoo.extend.hookspecs import API_VERSION, HOOKS, Hooks
from kdzoo.extend.isolation import Isolation
from kdzoo.extend.ranges import Choices, Range

__all__ = ["GROUP", "REGISTERED", "PluginRecord", "Registry", "register", "registry"]

GROUP = "kdzoo"
"""The entry-point group under which plugins are found."""

BUNDLED = "kdzoo"
"""The distribution whose plugins come first, so that nobody else's can take their names."""

REGISTERED = "this process"
"""In place of a distribution: components that were registered from Python."""

log = logging.getLogger("kdzoo")

Status = Literal["active", "broken", "disabled"]

_SECONDS = 60.0  # a plugin may import a large library from a slow disk
_UNKNOWN = "unknown"
_MODULE = re.compile(r"\w+(\.\w+)*(\s*:\s*\w+(\.\w+)*)?")
_NAME = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")
_NO_TEXT = re.compile(
    r"(?i)null|true|false|yes|no|on|off|\d[\d_]*(e-?\d+)?|0[xo][\da-f]+|\d{4}-\d\d?-\d\d?"
)
_ATTRIBUTES = ConfigDict(strict=True, allow_inf_nan=False, revalidate_instances="always")


@dataclass(frozen=True)
class PluginRecord:
    """What became of one entry point.

    Attributes:
        name: the entry point's name.
        distribution: the package that brought it, or "unknown"; for a local file its path.
        version: that package's version; for local code a hash of it.
        status: ``active``, ``broken`` (see ``reason``) or ``disabled``.
        reason: why it is broken; empty otherwise.
        adds: the names of its components, by kind.
        warnings: what it uses that will go, as ``file:line: message``.
    """

    name: str
    distribution: str
    version: str
    status: Status
    reason: str = ""
    adds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f'plugin "{self.name}" of {self.distribution} {self.version}'


class Registry:
    """All components of the plugins that work, and a record of each plugin that was found.

    Args:
        entry_points: the plugins to load.
        disabled: names of entry points that are skipped before they are imported.
        strict: raise for the first broken plugin instead of keeping a record of it.
        seconds: how long each may take to be imported.
    """

    def __init__(
        self,
        entry_points: Iterable[metadata.EntryPoint],
        disabled: Iterable[str] = (),
        strict: bool = False,
        seconds: float = _SECONDS,
    ) -> None:
        self.records: list[PluginRecord] = []
        self._seconds = seconds
        self._warned = False
        self._components: dict[str, dict[str, type[Component]]] = {
            base.kind: {} for base in HOOKS.values()
        }
        self._owners: dict[type[Component], PluginRecord] = {}
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(Hooks)
        skip = set(disabled)
        for entry in entry_points:
            record = self._load(entry, skip)
            if strict and record.status == "broken":
                raise PluginError(f"{record}: {record.reason}")
            self.records.append(record)
        self._refuse_unknown_adapters(strict)

    @classmethod
    def installed(cls) -> Registry:
        """The registry of everything installed, under ``KDZOO_DISABLE_PLUGINS``,
        ``KDZOO_STRICT_PLUGINS`` and ``KDZOO_PLUGIN_SECONDS``."""
        return cls(
            _installed_entry_points(),
            disabled=map(str.strip, os.environ.get("KDZOO_DISABLE_PLUGINS", "").split(",")),
            strict=os.environ.get("KDZOO_STRICT_PLUGINS", "") not in ("", "0"),
            seconds=_seconds(os.environ.get("KDZOO_PLUGIN_SECONDS", "")),
        )

    @property
    def broken(self) -> list[PluginRecord]:
        """The plugins that could not be loaded."""
        return [record for record in self.records if record.status == "broken"]

    @property
    def files(self) -> tuple[Path, ...]:
        """The local files that were added, for another process to add."""
        return tuple(
            Path(r.distribution) for r in self.records if Path(r.distribution).is_absolute()
        )

    def names(self, kind: str) -> list[str]:
        """The names of all components of one kind, sorted."""
        return sorted(self._components[kind])

    def find(self, kind: str, name: str) -> type[Any]:
        """The component class of that kind and name.

        Raises:
            SpecError: there is none; the message names the nearest, and any plugin that is broken
                or disabled and might have brought it.
        """
        found = self._components[kind].get(name)
        if found is not None:
            return found
        near = did_you_mean(name, self._components[kind])
        if not near.endswith("?"):
            near += "; one of your own is given with `--plugin FILE`, in Python with kdzoo.register"
        near = "" if self._meant(name) else near
        raise SpecError(f'unknown {kind} "{name}"{near}{self._absent(name)}')

    def named(self, name: str) -> list[type[Component]]:
        """All components of that name, whatever their kind; of one kind for ``loss.kd``; or those
        that the plugin of that name adds.

        Raises:
            SpecError: there is none.
        """
        kind, _, short = name.rpartition(".")
        everything = [c for found in self._components.values() for c in found.values()]
        named = [c for c in everything if c.name == short and kind in ("", c.kind)]
        if found := named or [c for c in everything if self.owner(c).name == name]:
            return found
        others = [f"{c.kind}.{c.name}" for c in everything if c.name == short]
        near = did_you_mean(short, [c.name for c in everything])
        if others:
            near = f"; there is {' and '.join(others)}"
        elif self._meant(short):
            near = ""
        raise SpecError(f'there is no component "{name}"{near}{self._absent(short)}')

    def _not_active(self) -> list[PluginRecord]:
        return [record for record in self.records if record.status != "active"]

    def _meant(self, name: str) -> list[PluginRecord]:
        """The plugins that are called so, and are broken or disabled."""
        return [each for each in self._not_active() if each.name.split(".")[-1] == name]

    def _absent(self, name: str) -> str:
        """The end of an error about an unknown name: which plugins might have brought it."""
        # A plugin that died before it said what it adds may have been the one that was meant.
        message = ""
        for record in self._meant(name) or self._not_active():
            reason = record.reason or "disabled by KDZOO_DISABLE_PLUGINS"
            message += f"\n    {record} may add it, but is {record.status}: {reason}"
        return message

    def make(self, kind: str, name: str, params: Mapping[str, Any]) -> Any:
        """A new component. ``params`` are plain values, as in a spec.

        Raises:
            SpecError: no such component.
            pydantic.ValidationError: the params are not the component's.
            PluginError: its own ``__init__`` failed.
        """
        component, given = self.find(kind, name), self.params(kind, name, params)
        with calling(f'{kind} "{name}"'):
            made = component(given)
            if getattr(made, "params", None) is None:
                raise TypeError("its __init__ does not call super().__init__(params)")
        return made

    def params(self, kind: str, name: str, params: Mapping[str, Any]) -> Params:
        """The validated params of a component, from plain values."""
        # Validated as JSON: there a list may stand for a tuple although types are strict.
        model: type[Params] = self.find(kind, name).Params
        return model.model_validate_json(json.dumps(dict(params)))

    def owner(self, component: type[Component]) -> PluginRecord:
        """The plugin that brought a component."""
        return self._owners[component]

    def warn_of_broken(self) -> None:
        """Warn, once, of every plugin that could not be loaded."""
        if not self._warned:
            for record in self.broken:
                log.warning("%s is broken and was left out: %s", record, record.reason)
        self._warned = True

    def _load(self, entry: metadata.EntryPoint, disabled: set[str]) -> PluginRecord:
        distribution, version = _origin(entry.dist)
        record = functools.partial(PluginRecord, entry.name, distribution, version)
        if entry.name in disabled:
            return record("disabled")
        isolation = Isolation(self._seconds)
        try:
            _refuse_other_range(entry.dist)
            _refuse_no_module(entry)
            plugin = isolation.call(entry.load, "cannot be imported")
            name = f"{distribution}:{entry.name}"
            components, warned = self._examine(name, plugin, distribution, isolation)
        except PluginError as error:
            return record("broken", str(error))
        return self._keep(components, record("active", warnings=warned))

    def add_file(self, path: Path) -> None:
        """Add the plugin in a local file: a module with hooks, as an installed one is.

        Raises:
            PluginError: it cannot be read or breaks the contract; the message names the file.
        """
        path = path.resolve()
        if any(record.distribution == str(path) for record in self.records):
            return
        try:
            version = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        except OSError as error:
            raise PluginError(f"{path}: cannot be read: {error.strerror}") from error
        known = len(self.records)
        sys.modules.pop(_module_name(path), None)  # of another registry
        isolation = Isolation(self._seconds)
        try:
            module = isolation.call(lambda: _import_file(path), "cannot be imported")
            if len(self.records) > known:
                raise PluginError(
                    "calls kdzoo.register, which is for scripts; return its classes from a hook: "
                    "@kdzoo.hookimpl"
                )
            components, warned = self._examine(str(path), module, str(path), isolation)
            for component in components:
                if reason := self._unknown_adapter(component, components):
                    raise PluginError(reason)
        except PluginError as error:
            if self._manager.has_plugin(str(path)):
                self._manager.unregister(name=str(path))
            raise PluginError(f"{path}: {error}") from error
        record = PluginRecord(path.stem, str(path), version, "active", warnings=warned)
        self.records.append(self._keep(components, record))

    def add(self, component: type[Component]) -> None:
        """Add a component of this process, or replace one that it added before.

        Raises:
            PluginError: it breaks its kind's contract, or its name is taken.
        """
        bases = HOOKS.values() if isinstance(component, type) else ()
        base = next((base for base in bases if issubclass(component, base)), None)
        if base is None:
            raise PluginError(f"{component!r} is no component: derive it from kdzoo.Loss, ...")
        check_component(component, base)
        if reason := self._unknown_adapter(component):
            raise PluginError(reason)
        other = self._components[component.kind].get(component.name)
        if other is not None and self._owners[other].distribution == REGISTERED:
            self.records.remove(self._owners.pop(other))
            del self._components[component.kind][component.name]
        self._refuse_duplicates([component], REGISTERED)
        record = PluginRecord(component.__name__, REGISTERED, _source_hash(component), "active")
        self.records.append(self._keep([component], record))

    @contextlib.contextmanager
    def lent(self, *components: type[Component]) -> Iterator[None]:
        """In here a spec can name these components, whoever else has their names; afterwards all
        is as it was before. For the tests of components."""
        before = {kind: dict(known) for kind, known in self._components.items()}
        owners, records = dict(self._owners), list(self.records)
        try:
            for component in components:
                record = PluginRecord(component.__name__, REGISTERED, "lent", "active")
                self.records.append(self._keep([component], record))
            yield
        finally:
            self._components, self._owners, self.records = before, owners, records

    def local_code(self, uses: Collection[str]) -> list[str]:
        """Hashes of the local files and of this process's components that add any of these names.

        They change while somebody works on them, and the results with them; an installed plugin
        has a version for that.
        """
        return sorted(
            record.version
            for record in self.records
            if (record.distribution == REGISTERED or Path(record.distribution).is_absolute())
            and any(name in uses for names in record.adds.values() for name in names)
        )

    def _refuse_unknown_adapters(self, strict: bool) -> None:
        """Once all plugins are there: a loss may have another one's adapter."""
        losses = list(self._components[Loss.kind].values())
        found = [(self._owners[loss], self._unknown_adapter(loss)) for loss in losses]
        for record, reason in found:
            if reason is None or record not in self.records:  # or it went for another loss of its
                continue
            if strict:
                raise PluginError(f"{record}: {reason}")
            for known in self._components.values():
                for name in [n for n, c in known.items() if self._owners[c] is record]:
                    del self._owners[known.pop(name)]
            broken = replace(record, status="broken", reason=reason, adds={})
            self.records[self.records.index(record)] = broken

    def _unknown_adapter(
        self, component: type[Component], beside: Iterable[type[Component]] = ()
    ) -> str | None:
        """Why a loss's default adapter cannot be had; it may be one of those ``beside`` it."""
        if not (issubclass(component, Loss) and component.default_adapter is not None):
            return None
        if any(record.status != "active" for record in self.records):
            return None  # one of these may have brought it, and breaks no other plugin
        adapter = component.default_adapter
        known = {*self._components[Adapter.kind]}
        known |= {other.name for other in beside if issubclass(other, Adapter)}
        if adapter in known:
            return None
        where = f"loss class {component.__name__}: default_adapter"
        return f'{where}: there is no adapter "{adapter}"{did_you_mean(adapter, known)}'

    def _keep(self, components: list[type[Component]], record: PluginRecord) -> PluginRecord:
        adds: dict[str, tuple[str, ...]] = {}
        for component in components:
            adds[component.kind] = (*adds.get(component.kind, ()), component.name)
        record = replace(record, adds=adds)
        for component in components:
            self._components[component.kind][component.name] = component
            self._owners[component] = record
        return record

    def _examine(
        self, name: str, plugin: Any, distribution: str, isolation: Isolation
    ) -> tuple[list[type[Component]], tuple[str, ...]]:
        """What one plugin adds, once all of it is known to be right, and what it warned of. Even
        an attribute that is looked up may be code of the plugin's."""
        failed = "cannot be examined"
        components = isolation.call(lambda: self._collect(name, plugin, distribution), failed)
        return components, isolation.call(lambda: isolation.deprecations_of(plugin), failed)

    def _collect(self, name: str, plugin: Any, distribution: str) -> list[type[Component]]:
        """Register one plugin, call its hooks alone, and check every class that they return."""
        _check_api_version(plugin)
        _check_hook_names(plugin)
        if self._manager.is_registered(plugin):
            raise PluginError("another entry point names the same module")
        try:
            self._manager.register(plugin, name=name)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"wrong signature: {' '.join(str(error).split())}") from error
        components: list[type[Component]] = []
        for hook, base in HOOKS.items():
            implementations = getattr(self._manager.hook, hook).get_hookimpls()
            for implementation in implementations:
                if implementation.plugin_name != name:
                    continue
                for component in _call(hook, implementation.function):
                    check_component(component, base)
                    components.append(component)
        if not components:
            raise PluginError(
                "adds nothing: no function is marked @kdzoo.hookimpl, or all returned empty lists"
            )
        self._refuse_duplicates(components, distribution)
        return components

    def _refuse_duplicates(self, components: list[type[Component]], distribution: str) -> None:
        taken = {
            named: self._owners[known].distribution
            for found in self._components.values()
            for known in found.values()
            for named in _names(known)
        }
        for component in components:
            for kind, name in _names(component):
                if first := taken.get((kind, name)):
                    raise PluginError(
                        f'duplicate name: {kind} "{name}" is already added by {first}; '
                        f"{distribution} must choose another name"
                    )
                taken[kind, name] = distribution


@functools.lru_cache(maxsize=1)
def registry() -> Registry:
    """The process's registry of everything installed, loaded at the first call."""
    return Registry.installed()


def check_component(component: Any, base: type[Component]) -> None:
    """Hold a class against its kind's contract.

    Raises:
        PluginError: it breaks it; the message names the class and what would be right.
    """
    kind = base.kind
    if not (isinstance(component, type) and issubclass(component, base)):
        raise PluginError(
            f"{component!r} is not a {kind}: return classes derived from kdzoo.{base.__name__}"
        )
    where = f"{kind} class {component.__name__}"
    if component.kind != kind:
        raise PluginError(
            f"{where}: kind is {component.kind!r}; kdzoo.{base.__name__} has set it to {kind!r}"
        )
    name = getattr(component, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise PluginError(
            f"{where}: name is {name!r}; set it to letters, digits, dashes and underscores"
        )
    if _NO_TEXT.fullmatch(name):
        raise PluginError(
            f"{where}: name is {name!r}, which YAML does not read as text; choose another"
        )
    if missing := getattr(component, "__abstractmethods__", None):
        raise PluginError(f"{where}: does not define {', '.join(sorted(missing))}")
    _check_attributes(where, component, base)
    if not str(component.__doc__ or "").strip() or component.__doc__ == base.__doc__:
        raise PluginError(f"{where}: has no docstring")
    try:
        inspect.signature(component).bind(None)
    except TypeError as error:
        raise PluginError(f"{where}: __init__ must take params alone: {error}") from error
    params = component.Params
    if not (isinstance(params, type) and issubclass(params, Params)):
        raise PluginError(f"{where}: Params is not derived from kdzoo.Params")
    for key, info in params.model_fields.items():
        _check_param(f"{where}: Params.{key}", key, info, base)
    try:
        params.model_json_schema()
        if not any(info.is_required() for info in params.model_fields.values()):
            params.model_validate_json(params().model_dump_json())
    except ValidationError as error:
        first = error.errors()[0]
        key, said = str(first["loc"][0]), first["msg"].replace("Input should", "it should")
        default = params.model_fields[key].get_default(call_default_factory=True)
        raise PluginError(f"{where}: Params.{key}: the default is {default!r}; {said}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise PluginError(f"{where}: Params cannot be written in a spec: {reason}") from error


def _check_attributes(where: str, component: type[Component], base: type[Component]) -> None:
    """Hold what a class may set against the annotations of its base class, and what it may define
    against the methods and properties there."""
    for name, annotation in inspect.get_annotations(base, eval_str=True).items():
        origin: Any = get_origin(annotation)
        if origin is ClassVar:
            (kind,) = get_args(annotation)
            value = getattr(component, name)
            try:
                TypeAdapter(kind, config=_ATTRIBUTES).validate_python(value)
            except ValidationError as error:
                first = error.errors()[0]
                said = first["msg"].replace("Input should", "it should")
                if name == "default_layers" and len(first["loc"]) < 2:  # no pairs at all
                    said = "it should be a tuple of pairs: (kdzoo.LayerPair(student, teacher),)"
                raise PluginError(f"{where}: {name} is {value!r}; {said}") from error
    for name, value in vars(base).items():
        own = inspect.getattr_static(component, name)
        if isinstance(value, property) and inspect.isroutine(own):
            raise PluginError(f"{where}: {name} is a method; mark it @property")
        if inspect.isfunction(value) and not callable(getattr(component, name)):
            raise PluginError(f"{where}: {name} is {own!r}; it must be a method")
        if inspect.isfunction(value) and inspect.isfunction(own) and not name.startswith("_"):
            _check_signature(where, name, own, value)


def _check_signature(
    where: str, name: str, own: Callable[..., Any], wanted: Callable[..., Any]
) -> None:
    """Every method is called with its arguments in order."""
    names = list(inspect.signature(wanted).parameters)
    signature = inspect.signature(own)
    try:
        signature.bind(*names)
    except TypeError as error:
        bare = signature.replace(
            parameters=[
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in signature.parameters.values()
            ],
            return_annotation=inspect.Signature.empty,
        )
        raise PluginError(f"{where}: {name}{bare} must take ({', '.join(names)})") from error


def _check_param(where: str, key: str, info: FieldInfo, base: type[Component]) -> None:
    if key == "use" or key in base.engine_keys:
        raise PluginError(f"{where}: the name is reserved for the spec's own key")
    if info.alias is not None:
        raise PluginError(f"{where}: has an alias; a spec uses the field's own name")
    if not info.description:
        raise PluginError(f'{where}: has no description; use kdzoo.Field(..., description="...")')
    if re.search(r"\b(list|List|set|Set|dict|Dict)\b", str(info.annotation)):
        raise PluginError(f"{where}: is mutable; use a tuple")
    for domain in info.metadata:
        if isinstance(domain, Range | Choices):
            _check_domain(where, domain, info)


def _check_domain(where: str, domain: Range | Choices, info: FieldInfo) -> None:
    """Whether a param can be what its tuning range says."""
    kind: Any = info.annotation
    param = create_model("Param", __base__=Params, value=(kind, info))
    for value in domain.ends:
        try:
            param.model_validate_json(json.dumps({"value": value}))
        except (ValidationError, TypeError) as error:
            raise PluginError(
                f"{where}: its tuning range has {value!r}, which it cannot be"
            ) from error


def register(*components: type[Component]) -> None:
    """Make components of your own known to specs, for this process.

    ``kdzoo.register(MyModel)``, then ``student: {use: my-model}``. What is to be shared belongs
    into a package with an entry point; what is to be used from the command line, into a file:
    ``kdzoo run spec.yaml --plugin my_models.py``.

    Raises:
        PluginError: a class breaks its kind's contract, or its name is taken.
    """
    for component in components:
        registry().add(component)


def _source_hash(component: type[Component]) -> str:
    try:
        source = inspect.getsource(component)
    except (OSError, TypeError):  # typed into an interpreter
        source = component.__qualname__
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _module_name(path: Path) -> str:
    tag = hashlib.sha256(str(path).encode()).hexdigest()[:8]  # two files may have one name
    return f"kdzoo_local_{path.stem}_{tag}"


def _import_file(path: Path) -> Any:
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError("is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its classes look for their module there
    spec.loader.exec_module(module)
    return module


def _refuse_other_range(distribution: metadata.Distribution | None) -> None:
    """pip installs another kdzoo beside a plugin that is not for it, and says so only once."""
    if distribution is None or _origin(distribution)[0] == BUNDLED:
        return
    version, required = "", []
    with contextlib.suppress(Exception):  # an interrupted installation may have left no metadata
        version = metadata.version(BUNDLED)
        required = [Requirement(text) for text in distribution.requires or ()]
    for needed in required:
        if canonicalize_name(needed.name) != BUNDLED:
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        if not needed.specifier.contains(version, prereleases=True):
            raise PluginError(
                f"is for kdzoo{needed.specifier}, and this is kdzoo {version}; install a version "
                "of the plugin that is for this one, or another kdzoo"
            )


def _refuse_no_module(entry: metadata.EntryPoint) -> None:
    if not _MODULE.fullmatch(entry.value):
        raise PluginError(f"its entry point is {entry.value!r}; it must name a module")


def _names(component: type[Component]) -> Iterator[tuple[str, str]]:
    """What no other component may be called, by what it is the name of."""
    yield component.kind, component.name
    if issubclass(component, DataSource):
        for name in component.starters:
            yield "spec to start from", name


def _check_api_version(plugin: Any) -> None:
    wanted = getattr(plugin, "KDZOO_API_VERSION", API_VERSION)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise PluginError(f"KDZOO_API_VERSION is {wanted!r}; it must be a whole number from 1 on")
    if wanted > API_VERSION:
        raise PluginError(
            f"is written for kdzoo API {wanted}, and this kdzoo has API {API_VERSION}; "
            "upgrade kdzoo, or install an older version of the plugin"
        )


def _check_hook_names(plugin: Any) -> None:
    """pluggy ignores a hook it does not know; here it is taken for a misspelling."""
    for name in dir(plugin):
        value = getattr(plugin, name, None)
        if not inspect.isroutine(value):
            continue
        marked = hasattr(value, f"{GROUP}_impl")
        if marked and name not in HOOKS:
            raise PluginError(f'unknown hook "{name}"{did_you_mean(name, HOOKS)}')
        if name in HOOKS and not marked:
            raise PluginError(f"{name} is not marked @kdzoo.hookimpl")


def _call(hook: str, function: Callable[[], Any]) -> list[Any]:
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{hook}() raised {type(error).__name__}: {error}") from error
    if not isinstance(result, list):
        got = "a class" if inspect.isclass(result) else f"{type(result).__name__}"
        raise PluginError(f"{hook}() must return a list of classes, not {got}")
    return result


def _installed_entry_points() -> list[metadata.EntryPoint]:
    """Every plugin once, although a distribution may lie on the path twice; the bundled first."""
    unique: dict[tuple[bool, str, str], metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=GROUP):
        distribution, _ = _origin(entry.dist)
        unique.setdefault((distribution != BUNDLED, distribution, entry.name), entry)
    return [unique[key] for key in sorted(unique)]


def _origin(distribution: metadata.Distribution | None) -> tuple[str, str]:
    """Name and version, although an interrupted installation may have left neither."""
    if distribution is None:
        return _UNKNOWN, _UNKNOWN
    try:
        fields = distribution.metadata
        return fields["Name"] or _UNKNOWN, fields["Version"] or _UNKNOWN
    except Exception:
        return _UNKNOWN, _UNKNOWN


def _seconds(text: str) -> float:
    try:
        seconds = float(text or _SECONDS)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise PluginError(f"KDZOO_PLUGIN_SECONDS is {text!r}; it must be a number above 0")
    return seconds
