"""The short forms that a spec may use, spelt out before it is validated."""

from __future__ import annotations

from typing import Any

from kdzoo.spec.models import Stage

__all__ = ["STAGE_KEYS", "spell_out", "spell_out_stage"]

STAGE_KEYS = tuple(Stage.model_fields)
"""The keys of a stage; those of a single stage may stand at the top of a spec."""


def spell_out(spec: dict[str, Any]) -> None:
    """Change a spec's raw data in place: a string becomes ``{use: string}`` where a component is
    named, a single pair of layers becomes a list, and a loss's id its ``use``.

    What is not of the expected form is left as it is, for validation to name.
    """
    for key in ("data", "teacher", "student"):
        _use(spec, key)
    _use_each(spec, "observers")
    teacher = spec.get("teacher")
    stages = spec.get("stages")
    for stage in (spec, teacher, *(stages if isinstance(stages, list) else ())):
        spell_out_stage(stage)


def spell_out_stage(stage: Any) -> None:
    """The same for one stage."""
    if not isinstance(stage, dict):
        return
    _use(stage, "policy")
    train = stage.get("train")
    if isinstance(train, dict):
        _use(train, "optimizer")
        _use(train, "schedule")
    _use_each(stage, "losses")
    losses = stage.get("losses")
    for loss in losses if isinstance(losses, list) else ():
        if isinstance(loss, dict):
            _use(loss, "adapter")
            if isinstance(loss.get("layers"), dict):
                loss["layers"] = [loss["layers"]]
            if isinstance(loss.get("use"), str):
                loss.setdefault("id", loss["use"])


def _use(parent: dict[str, Any], key: str) -> None:
    if isinstance(parent.get(key), str):
        parent[key] = {"use": parent[key]}


def _use_each(parent: dict[str, Any], key: str) -> None:
    entries = parent.get(key)
    if isinstance(entries, list):
        parent[key] = [{"use": entry} if isinstance(entry, str) else entry for entry in entries]
