"""answers.safetensors: what a finished student answered to each test image.

Confusions, the agreement of two networks and tests between them come from these files, so that no
test image is read again for them.
"""

from __future__ import annotations

import numpy as np
import safetensors
from safetensors.numpy import load_file, save

from kdzoo.errors import CheckpointError
from kdzoo.training.directory import RunDirectory
from kdzoo.training.evaluate import Evaluation, Ints

__all__ = ["read_answers", "write_answers"]


def write_answers(directory: RunDirectory, evaluation: Evaluation) -> None:
    """Keep ``targets`` and ``answers``, (N,) each, in the order of the data's test set."""
    content = save(
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
        arrays = load_file(directory.answers)
        return arrays["targets"].astype(np.int64), arrays["answers"].astype(np.int64)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{directory.answers}: cannot be read ({error}); remove it to test the student again"
        ) from error
