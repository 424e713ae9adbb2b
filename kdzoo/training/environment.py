"""Where a run computes; and environment.json, what its last digits depend on."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kdzoo.errors import RunError
from kdzoo.extend.registry import REGISTERED, registry
from kdzoo.spec.models import Spec
from kdzoo.training.directory import RunDirectory
from kdzoo.training.distributed import processes

__all__ = [
    "device_of",
    "environment",
    "is_plugin_file",
    "keep_environment",
    "missing_compiler",
    "need_compiler",
    "other_plugins",
    "read_environment",
    "versions_in",
]

log = logging.getLogger("kdzoo")

_LIBRARIES = ("torch", "torchvision", "numpy")


def device_of(name: str) -> torch.device:
    """The device that a spec's ``device`` stands for, in this process.

    Raises:
        RunError: there is none, or none for this process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError("device: cuda is asked for, and torch finds none; use cpu or auto")
    if processes().count == 1:
        return torch.device("cuda")
    there = torch.cuda.device_count()
    if processes().local_rank >= there:
        raise RunError(
            f"there are {processes().local_count} processes on a machine with {there} GPUs; start "
            "one process per GPU, or say `device: cpu`"
        )
    torch.cuda.set_device(processes().local_rank)
    return torch.device("cuda", processes().local_rank)


def missing_compiler() -> str | None:
    """The C++ compiler that torch would call, if it is not there."""
    compiler = os.environ.get("CXX", "g++")
    return compiler if shutil.which(compiler) is None else None


def need_compiler(spec: Spec, device: torch.device) -> None:
    """Where steps are compiled.

    Raises:
        RunError: there is no compiler.
    """
    compiled = any(stage.train.compile for stage in spec.stages)
    if compiled and device.type == "cpu" and (compiler := missing_compiler()) is not None:
        raise RunError(
            f"compile: torch needs a C++ compiler, and there is no {compiler}; install one, name "
            "another in the variable CXX, or say `compile: false`"
        )


def environment(device: torch.device, *, processes: int, compiled: bool) -> dict[str, Any]:
    """What exactness depends on, as plain data.

    Args:
        device: where is computed.
        processes: how many train together.
        compiled: whether steps are compiled.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "compiled": compiled,
        "versions": {
            **{name: metadata.version(name) for name in _LIBRARIES},
            **{
                record.distribution: record.version
                for record in sorted(registry().records, key=str)
                if record.distribution not in ("unknown", REGISTERED)
            },
        },
    }


def keep_environment(directory: RunDirectory, now: dict[str, Any]) -> None:
    """Keep an environment as it was when the run began; say what is different now."""
    if not directory.environment.exists():
        directory.write(directory.environment, json.dumps(now, indent=2).encode())
        return
    before = read_environment(directory)
    if not before:
        log.warning(
            "%s: is damaged; whether this run began in another environment is not known",
            directory.environment,
        )
        return
    for key, value in _flat(now).items():
        was = _flat(before).get(key)
        if was != value:
            log.warning(
                "%s: %s was %s when this run began and is %s now: what is computed now may differ "
                "from what would have been computed then",
                directory.path,
                key,
                was,
                value,
            )


def read_environment(directory: RunDirectory) -> dict[str, Any]:
    """The environment in which a run began; nothing where the file is damaged or gone."""
    try:
        kept = json.loads(directory.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def versions_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """The versions in what :func:`read_environment` read: of packages, and of plugin files."""
    versions = record.get("versions")
    return versions if isinstance(versions, dict) else {}


def is_plugin_file(name: str) -> bool:
    """Whether what has a version is a file given by ``--plugin``, and no package."""
    return Path(name).is_absolute()


def other_plugins(directory: RunDirectory) -> list[str]:
    """Which packages and files of plugins a run was made with that are not here, or are here in
    another version: a sentence's end for each."""
    then = versions_in(read_environment(directory))
    now = {record.distribution: record.version for record in registry().records}
    said = []
    for name, version in then.items():
        if name in _LIBRARIES or now.get(name) == version:
            continue
        if is_plugin_file(name):
            said.append(f"{name} {'has changed' if name in now else 'is not given: --plugin'}")
        elif name in now:
            said.append(f"{name} was {version} when it was made and is {now[name]} now")
        else:
            said.append(f"it was made with {name} {version}, which is not here")
    return said


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """The versions beside the rest, for a message about one of them."""
    rest = {key: value for key, value in record.items() if key != "versions"}
    return {**rest, **versions_in(record)}
