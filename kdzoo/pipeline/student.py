"""The trained student of a run: loaded, and tested again."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import ValidationError

from kdzoo.data.images import Images
from kdzoo.distill.network import Network
from kdzoo.errors import CheckpointError, SpecError
from kdzoo.extend.bases import DataSource
from kdzoo.extend.registry import registry
from kdzoo.pipeline.parts import refuse_other_classes
from kdzoo.pipeline.session import Session
from kdzoo.report.summary import Report, Score
from kdzoo.spec.read import read_spec
from kdzoo.training.correction import Correction, fit_correction
from kdzoo.training.directory import RunDirectory
from kdzoo.training.environment import other_plugins
from kdzoo.training.evaluate import Evaluation, evaluate
from kdzoo.training.weights import NetworkRecipe, load_weights

_EVALUATED = ("name", "seed", "data", "student", "device")  # the keys that evaluation reads

__all__ = ["evaluate_run", "load_student", "tested"]

_INSTALL = (
    "install the package and the version that it came from, or give your own file with "
    "`--plugin FILE`, in Python kdzoo.register"
)


def load_student(directory: str | Path, *, corrected: bool = False) -> Network:
    """The trained student of a run, in eval mode, on the CPU.

    It takes images as floats in [0, 1], (B, channels, height, width), and returns logits (B, C);
    the input normalization is part of it. An architecture of your own must be known before
    (:func:`kdzoo.register`).

    Args:
        directory: the run directory.
        corrected: whether the logits have the scale and the offsets of the run's report, which were
            fitted to its validation images, so that no class is answered too often or too seldom
            there.

    Raises:
        CheckpointError: there is no finished run, its model cannot be built, its weights are
            damaged, or it has no validation images and ``corrected`` was asked for.
    """
    network, recipe = _trained_student(directory)
    if corrected:
        file = RunDirectory(Path(directory)).report
        fitted = Report.read(file).student.correction
        if fitted is None:
            raise CheckpointError(
                f"{file}: has no offsets to correct the student by, since the run has no "
                "validation images; load it without `corrected`"
            )
        offsets = torch.tensor([fitted.offsets[name] for name in recipe.classes])
        network.correction = Correction(fitted.scale, offsets)
    return network


def _trained_student(directory: str | Path) -> tuple[Network, NetworkRecipe]:
    run = RunDirectory(Path(directory))
    file = run.student
    if run.path.is_file():
        raise CheckpointError(
            f"{directory}: is a file; name the directory of the run that it is of"
        )
    if not file.exists():
        raise CheckpointError(
            f"{directory}: holds no trained student (no {file.name}); name a finished run's "
            "directory (runs/NAME-HASH)"
        )
    recipe = NetworkRecipe.of(file)
    if recipe is None:
        raise CheckpointError(f"{file}: was not written by kdzoo")
    try:
        network, _ = recipe.build(seed=0, weights_follow=True)
    except (SpecError, ValidationError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            keys = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
            reason = f'model "{recipe.use}" takes other parameters here ({keys})'
        raise CheckpointError(
            f'{file}: its model cannot be built: {reason}\n    It was "{recipe.use}" with '
            f"{json.dumps(recipe.params)}; {_INSTALL}{_since(run)}"
        ) from error
    try:
        load_weights(network.model, file, "the student")
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_since(run)}") from error
    return network.eval(), recipe


def _since(run: RunDirectory) -> str:
    """The end of an error: which plugins are others than when the run was made."""
    return "".join(f"\n    {said}" for said in other_plugins(run))


def evaluate_run(directory: str | Path) -> Score:
    """The score of a finished run's student on the test images of its spec.

    Raises:
        CheckpointError: as :func:`load_student`; or there is no such data source here.
        KdzooError: its data is gone, or is other data by now.
    """
    student, recipe = _trained_student(directory)
    # Of the spec only the data and the student are needed: whatever else it names may be gone.
    whole = RunDirectory(Path(directory)).kept_spec()
    kept = {key: whole[key] for key in _EVALUATED if key in whole}
    kept["student"] = {k: v for k, v in kept["student"].items() if k != "checkpoint"}
    try:
        registry().find(DataSource.kind, kept["data"]["use"])
    except SpecError as error:
        run = RunDirectory(Path(directory))
        raise CheckpointError(f"{run.spec}: {error}\n    {_INSTALL}{_since(run)}") from error
    spec = read_spec({**kept, "train": {"epochs": 1}})
    session = Session(Path(directory).parent, spec)
    images = session.images(spec)
    refuse_other_classes(recipe.classes, images, "student")
    student.to(session.device).prefer_channels_last(images.example.inputs)
    return Score.of(tested(student, images), images.classes)


def tested(network: Network, images: Images) -> Evaluation:
    """The test images, with a correction that was fitted on the validation images."""
    correction = fit_correction(network, images.validation)
    return evaluate(network, images.test, len(images.classes), correction)
