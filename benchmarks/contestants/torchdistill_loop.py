"""torchdistill: its boxes, losses and data wrappers, configured as its sample configurations are.

The optional package ``torchdistill`` is needed for this contestant alone. The networks are kdzoo's
with torch's defaults, so that only the frameworks differ. The teacher is put into eval mode here:
no part of the package does it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler

from contestants.job import (
    DECAY,
    MOMENTUM,
    RATE,
    TEMPERATURE,
    Job,
    NotOfferedError,
    Pictures,
    Watch,
    networks,
    penultimate,
    regressor,
    timed,
)


def run(job: Job, watch: Watch) -> None:
    """Train until the watch has seen enough."""
    timed(job, watch, loop)


def loop(job: Job, workers: int) -> Iterator[None]:
    """The loop of the package's image classification example; yields after each step."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.core.training import get_training_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    teacher, student, *_ = networks(job)
    data, device = {"train": Pictures(job)}, torch.device(job.device)
    teacher, student = teacher.to(device), student.to(device)
    rest = (data, configuration(job, workers), device, [], False, 1)
    if job.method == "ce":
        box = get_training_box(student, *rest)
    else:
        box = get_distillation_box(teacher, student, *rest)
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        logger = MetricLogger(delimiter="  ")
        logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for images, targets, extra in logger.log_every(box.train_data_loader, 100, f"[{epoch}]"):
            begun = time.time()
            loss = box.forward_process(images.to(device), targets.to(device), extra)
            box.post_forward_process(loss=loss)
            logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            logger.meters["img/s"].update(len(images) / (time.time() - begun))
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"the loss is {loss}")
            yield
        box.post_epoch_process()


def configuration(job: Job, workers: int) -> dict[str, Any]:
    """What would stand under ``train`` in one of the package's YAML files."""
    loader: dict[str, Any] = {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
        "kwargs": {
            "batch_size": job.batch,
            "num_workers": workers,
            "pin_memory": job.device == "cuda",
            "drop_last": False,
        },
    }
    forward = {"forward_proc": "forward_batch_only"}
    parts: dict[str, Any] = {"teacher": {**forward, "requires_grad": False}, "student": forward}
    label = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": 1.0,
    }
    if job.method == "ce":
        parts, terms = {"model": forward}, {"ce": label}
    elif job.method == "kd":
        terms = {"kd": {"criterion": _soft_targets(), "weight": 1.0}}
    elif job.method == "fitnet":
        terms = {"ce": label, "hint": _hint(job, parts)}
    elif job.method == "crd":
        terms = {"ce": label, "crd": _contrast(job, parts, loader)}
    else:
        version = metadata.version("torchdistill")
        raise NotOfferedError(f"torchdistill {version} has no {job.method}")
    return {
        "num_epochs": 240,
        "train_data_loader": loader,
        "val_data_loader": {},
        **parts,
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY},
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def _soft_targets() -> dict[str, Any]:
    return {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": TEMPERATURE,
            "alpha": 0.1,
            "reduction": "batchmean",
        },
    }


def _hint(job: Job, parts: dict[str, Any]) -> dict[str, Any]:
    """Its sample trains hints in a stage of their own, with the networks cut off behind them. Here
    they are trained with the cross entropy, by its own parts: ConvReg in an auxiliary wrapper."""
    layers, student_path, teacher_path = regressor(job)
    convolution = layers[0]
    if not isinstance(convolution, nn.Conv2d):
        raise NotOfferedError("torchdistill's ConvReg cannot bring maps up")
    _register_wrapper()
    parts["teacher"]["forward_hook"] = {"input": [], "output": [teacher_path]}
    parts["student"] = {
        **parts["student"],
        "auxiliary_model_wrapper": {
            "key": "StepHint",
            "kwargs": {
                "path": f"student_model.{student_path}",
                "regressor": {
                    "num_input_channels": convolution.in_channels,
                    "num_output_channels": convolution.out_channels,
                    "kernel_size": convolution.kernel_size,
                    "stride": convolution.stride,
                    "padding": convolution.padding,
                },
            },
        },
        "forward_hook": {"input": [], "output": [f"student_model.{student_path}", "regressor"]},
    }
    return {
        "criterion": {"key": "MSELoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": "regressor", "io": "output"},
                "target": {"is_from_teacher": True, "module_path": teacher_path, "io": "output"},
            },
        },
        "weight": 100.0,
    }


def _register_wrapper() -> None:
    from torchdistill.models.adaptation import ConvReg
    from torchdistill.models.registry import register_auxiliary_model_wrapper
    from torchdistill.models.wrapper import AuxiliaryModelWrapper

    @register_auxiliary_model_wrapper(key="StepHint")
    class Hint(AuxiliaryModelWrapper):  # type: ignore[misc]
        """The student with a regressor behind one of its layers."""

        def __init__(
            self, path: str, regressor: dict[str, Any], student_model: nn.Module, **_: Any
        ) -> None:
            super().__init__()
            self.student_model = student_model
            self.path = path
            self.regressor = ConvReg(**regressor)

        def forward(self, images: torch.Tensor) -> Any:
            return self.student_model(images)

        def secondary_forward(self, io: dict[str, Any]) -> None:
            self.regressor(io[self.path]["output"])


def _contrast(job: Job, parts: dict[str, Any], loader: dict[str, Any]) -> dict[str, Any]:
    """As in its sample for ILSVRC 2012, without the sample's soft targets."""
    teacher, student, teacher_layers, student_layers = networks(job)
    loader["dataset_wrapper"] = {
        "key": "CRDDatasetWrapper",
        "kwargs": {"num_negative_samples": job.negatives, "mode": "exact", "ratio": 1.0},
    }
    for role, model, layers in (
        ("teacher", teacher, teacher_layers),
        ("student", student, student_layers),
    ):
        path = f"model.{layers.penultimate}"
        parts[role] = {
            "forward_proc": "forward_batch_supp_dict",
            "auxiliary_model_wrapper": {
                "key": "Linear4CRD",
                "kwargs": {
                    "input_module_path": path,
                    "linear_kwargs": {
                        "in_features": penultimate(model, layers),
                        "out_features": 128,
                    },
                    "power": 2,
                },
            },
            "forward_hook": {
                "input": ["empty"] if role == "student" else [],
                "output": [path, "normalizer"],
            },
            "requires_grad": True,
            "frozen_modules": ["model"] if role == "teacher" else [],
        }
    return {
        "criterion": {
            "key": "CRDLoss",
            "kwargs": {
                "student_norm_module_path": "normalizer",
                "student_empty_module_path": "empty",
                "teacher_norm_module_path": "normalizer",
                "input_size": 128,
                "output_size": job.samples,
                "num_negative_samples": job.negatives,
                "num_samples": job.samples,
            },
        },
        "weight": 0.8,
    }
