"""The specs that a spec implies: its teacher's run, and its baseline's."""

from __future__ import annotations

from kdzoo.errors import SpecError
from kdzoo.extend.bases import Loss
from kdzoo.extend.registry import registry
from kdzoo.seeds import stream
from kdzoo.spec.models import LossEntry, ModelEntry, Spec, Stage
from kdzoo.spec.read import read_losses, read_spec

__all__ = ["baseline_spec", "baseline_stages", "teacher_spec"]


def teacher_spec(spec: Spec) -> Spec | None:
    """The run that trains the teacher, if one does: an ordinary run whose student it is."""
    teacher = spec.teacher
    if teacher is None:
        return None
    if teacher.run is not None:
        other = read_spec(teacher.run)
        return other.model_copy(update={"stop_epoch": teacher.epoch}) if teacher.epoch else other
    if teacher.train is None:
        return None
    return spec.model_copy(
        update={
            "name": f"{spec.name}-teacher",
            "seed": teacher.seed if isinstance(teacher.seed, int) else stream(spec.seed, "teacher"),
            "teacher": None,
            "student": ModelEntry(use=teacher.use, normalize=teacher.normalize, **teacher.params),
            "baseline": False,
            "stages": (Stage(train=teacher.train, losses=teacher.losses),),
            "stop_epoch": None,
        }
    )


def baseline_spec(spec: Spec) -> Spec:
    """The run that trains the same student without the teacher: same seed, split and views."""
    stages = baseline_stages(spec)
    epochs = sum(spec.stage_epochs[number] for number in stages)
    if not epochs:
        raise SpecError(
            f"stop_epoch: {spec.stop_epoch} ends the run before its first stage with a label "
            "term, so there is no baseline to compare with; set `baseline: false`"
        )
    return spec.model_copy(
        update={
            "name": f"{spec.name}-baseline",
            "teacher": None,
            "baseline": False,
            "stages": tuple(
                _baseline_stage(spec.stages[number], losses) for number, losses in stages.items()
            ),
            "stop_epoch": None if spec.stop_epoch is None else epochs,
        }
    )


def baseline_stages(spec: Spec) -> dict[int, tuple[LossEntry, ...]]:
    """The stages that a baseline has, by number, and their losses: the label terms, in full.

    A spec without any label term has a baseline that learns from labels in its last stage.
    """
    stages: dict[int, tuple[LossEntry, ...]] = {}
    for number, stage in enumerate(spec.stages):
        losses = tuple(
            entry.model_copy(update={"weight": 1.0, "warmup_epochs": 0})
            for entry in stage.losses
            if registry().find(Loss.kind, entry.use).guidance == "label"
        )
        if losses:
            stages[number] = losses
    default = [entry.use for entry in Stage.model_fields["losses"].default]
    return stages or {len(spec.stages) - 1: read_losses(default)}


def _baseline_stage(stage: Stage, losses: tuple[LossEntry, ...]) -> Stage:
    ids = [entry.id for entry in losses]
    gone = [entry.id for entry in stage.losses if entry.id not in ids]
    learn = tuple(
        part for part in stage.learn if part.split(".")[:2] not in [["losses", id_] for id_ in gone]
    )
    policy = Stage.model_fields["policy"].default
    return stage.model_copy(update={"losses": losses, "policy": policy, "learn": learn})
