"""What a student answered, image by image.

answers.safetensors is about the test images: confusions, the agreement of two networks and tests
between them come from these files, so that no test image is read again for them.
right.safetensors of a student without a teacher is about the images that it was trained on and
validated with, epoch by epoch: the curves of runs whose baseline it is are compared image by image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import torch

from kdzoo.errors import CheckpointError
from kdzoo.training.directory import RunDirectory
from kdzoo.training.evaluate import Evaluation, Ints
from kdzoo.training.hashed_file import pack, unpack

__all__ = ["read_answers", "read_right_rows", "write_answers", "write_right_rows"]


def write_answers(directory: RunDirectory, evaluation: Evaluation) -> None:
    """Keep ``targets`` and ``answers``, (N,) each, in the order of the data's test set."""
    content = _packed(
        {
            "targets": evaluation.targets.astype(np.int32),
            "answers": evaluation.answers.astype(np.int32),
        }
    )
    directory.write(directory.answers, content)


def read_answers(directory: RunDirectory) -> tuple[Ints, Ints]:
    """The targets (N,) and the answers (N,) of a finished run.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        arrays = _unpacked(directory.answers)
        return arrays["targets"].astype(np.int64), arrays["answers"].astype(np.int64)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{directory.answers}: cannot be read ({error}); remove it to test the student again"
        ) from error


def write_right_rows(directory: RunDirectory, bits: npt.NDArray[np.uint8]) -> None:
    """Keep on which rows of the training set the student was right, (E, rows / 8): a bit a row."""
    directory.write(directory.right, _packed({"right": bits}))


def read_right_rows(directory: RunDirectory) -> npt.NDArray[np.uint8]:
    """The bits (E, rows / 8) of a trained baseline.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        bits: npt.NDArray[np.uint8] = _unpacked(directory.right)["right"]
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{directory.right}: cannot be read ({error}); remove {directory.path} to train the "
            "baseline again"
        ) from error
    return bits


def _packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return pack({name: torch.from_numpy(array) for name, array in arrays.items()})


def _unpacked(file: Path) -> dict[str, npt.NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in unpack(file).items()}
