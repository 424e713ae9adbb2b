"""environment.json: what a run's last digits depend on."""

from __future__ import annotations

import json
import logging
import platform
from importlib import metadata
from typing import Any

import torch

from kdzoo.extend.registry import REGISTERED, registry
from kdzoo.training.directory import RunDirectory

__all__ = ["environment", "keep_environment", "read_environment"]

log = logging.getLogger("kdzoo")


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
            **{name: metadata.version(name) for name in ("torch", "torchvision", "numpy")},
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
    """The environment in which a run began; nothing where the file is damaged."""
    try:
        kept = json.loads(directory.environment.read_bytes())
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """The versions beside the rest, for a message about one of them."""
    versions = record.get("versions")
    rest = {key: value for key, value in record.items() if key != "versions"}
    return {**rest, **(versions if isinstance(versions, dict) else {})}
