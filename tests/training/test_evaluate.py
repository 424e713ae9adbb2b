"""What is measured on images that are not learnt from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

import kdzoo
from kdzoo.data.images import Split, View
from kdzoo.report.summary import Score
from kdzoo.training.answers_file import (
    read_answers,
    read_right_rows,
    write_answers,
    write_right_rows,
)
from kdzoo.training.correction import fit_correction
from kdzoo.training.directory import RunDirectory
from kdzoo.training.evaluate import Evaluation, evaluate


class Given(Split):
    """Images that are the logits of a network which answers what it sees."""

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        super().__init__(targets, torch.arange(len(targets)))
        self.logits = logits

    def plain(self, chunk: int = 7) -> Iterator[View]:
        for rows in torch.arange(len(self.targets)).split(chunk):
            yield View(self.logits[rows], self.targets[rows], rows)

    def augmented(self, order: Tensor, sizes: Sequence[int], epoch: int) -> Iterator[View]:
        raise NotImplementedError


def drawn(count: int, classes: int, strength: float = 2.0) -> Given:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (count,), generator=draw)
    logits = torch.randn(count, classes, generator=draw)
    logits[torch.arange(count), targets] += strength
    return Given(logits, targets)


def measured(split: Split, classes: int) -> Evaluation:
    return evaluate(nn.Identity(), split, classes)


def test_counts_are_those_of_a_plain_loop() -> None:
    split = drawn(200, 7)
    found = measured(split, 7)
    confusion, five, bins = np.zeros((7, 7), int), 0, [[] for _ in range(15)]
    for row, target in zip(split.logits.tolist(), split.targets.tolist(), strict=True):
        order = sorted(range(7), key=lambda c: -row[c])
        confusion[target, order[0]] += 1
        five += target in order[:5]
        confidence = np.exp(row[order[0]]) / np.exp(row).sum()
        number = next(b for b in range(15) if b / 15 < confidence <= (b + 1) / 15)
        bins[number].append((confidence, order[0] == target))
    gaps = [
        len(b) * abs(np.mean([c for c, _ in b]) - np.mean([r for _, r in b])) for b in bins if b
    ]
    assert (found.confusion == confusion).all()
    assert found.accuracy == confusion.trace() / 200
    assert found.top5 == five / 200
    assert found.calibration_error == pytest.approx(sum(gaps) / 200, abs=1e-6)
    assert found.corrected_confusion is None


def test_extremes() -> None:
    sure = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    right = measured(Given(sure, torch.tensor([0, 1])), 2)
    wrong = measured(Given(sure, torch.tensor([1, 0])), 2)
    assert (right.calibration_error, wrong.calibration_error) == (0, 1)
    assert right.top5 is None  # two classes
    assert (wrong.confusion == [[0, 1], [1, 0]]).all()


def test_a_score_by_hand() -> None:
    evaluation = Evaluation(
        num_classes=4,
        targets=np.array([0, 0, 0, 0, 1, 1, 2, 2]),
        answers=np.array([0, 0, 0, 1, 1, 0, 0, 2]),
        corrected=np.array([0, 0, 0, 0, 1, 1, 2, 2]),
        correction=None,
        confidence=np.full(8, 0.5),
        among_five=np.ones(8, bool),
    )
    score = Score.of(evaluation, ["a", "b", "c", "d"])  # there are no images of d
    assert score.accuracy == 5 / 8
    assert score.classes == {"a": 0.75, "b": 0.5, "c": 0.5}
    assert score.precision == {"a": 0.6, "b": 0.5, "c": 1.0}  # d is never answered
    assert score.predicted_share == {"a": 0.625, "b": 0.25, "c": 0.125, "d": 0.0}
    assert (score.balanced_accuracy, score.worst_class) == (0.583333, "b")
    assert score.worst_tenth == 0.5
    assert (score.corrected_accuracy, score.corrected["a"]) == (1.0, 1.0)
    assert score.calibration_error == 0.125


def test_offsets_take_a_bias_back() -> None:
    """The bias of a network that answers two classes too often, learnt from other images."""
    split, classes = drawn(6000, 10), 10
    bias = torch.zeros(classes)
    bias[:2] = 2.0
    biased = 3 * (split.logits + bias)  # and overconfident
    known, unknown = (
        Given(biased[rows], split.targets[rows]) for rows in (slice(3000), slice(3000, None))
    )
    correction = fit_correction(nn.Identity(), known)
    assert correction is not None
    found = evaluate(nn.Identity(), unknown, classes, correction)
    fair = measured(Given(split.logits[3000:], split.targets[3000:]), classes)
    assert found.corrected is not None
    assert found.accuracy < fair.accuracy - 0.1
    assert np.mean(found.corrected == found.targets) > fair.accuracy - 0.01
    # Up to a constant, the offsets are the bias in the units of the scaled logits.
    offsets = correction.offsets - correction.offsets.mean()
    expected = -3 * correction.scale * (bias - bias.mean())
    assert offsets.numpy() == pytest.approx(expected.numpy(), abs=0.3)


@pytest.mark.parametrize("strength", [2.0, 1000.0])
def test_offsets_stay_finite(strength: float) -> None:
    """A class without validation images; and every image right, by far."""
    split = drawn(100, 10, strength)
    kept = split.targets != 3
    correction = fit_correction(nn.Identity(), Given(split.logits[kept], split.targets[kept]))
    assert correction is not None
    assert np.isfinite(correction.scale)
    assert correction.offsets.abs().max() < 10


def test_without_validation_images_there_is_no_correction() -> None:
    split = drawn(4, 3)
    assert fit_correction(nn.Identity(), Given(split.logits[:0], split.targets[:0])) is None


def test_answers_are_kept(tmp_path: Path) -> None:
    directory, evaluation = RunDirectory(tmp_path), measured(drawn(50, 3), 3)
    write_answers(directory, evaluation)
    targets, answers = read_answers(directory)
    assert (targets == evaluation.targets).all()
    assert (answers == evaluation.answers).all()
    directory.answers.write_bytes(b"torn")
    with pytest.raises(kdzoo.CheckpointError, match=r"answers\.safetensors: cannot be read"):
        read_answers(directory)
    directory.answers.unlink()
    with pytest.raises(kdzoo.CheckpointError, match="cannot be read"):
        read_answers(directory)


def test_right_rows_are_read_back_or_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    bits = np.packbits(np.random.default_rng(0).random((3, 21)) < 0.5, axis=1)
    write_right_rows(directory, bits)
    assert (read_right_rows(directory) == bits).all()
    for spoil in (lambda: directory.right.write_bytes(b"torn"), directory.right.unlink):
        spoil()
        with pytest.raises(kdzoo.CheckpointError, match="to train the baseline again"):
            read_right_rows(directory)


def test_one_bit_that_is_another_is_noticed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_right_rows(directory, np.full((3, 5), 7, np.uint8))
    write_answers(directory, measured(drawn(50, 3), 3))
    for file, read in ((directory.right, read_right_rows), (directory.answers, read_answers)):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(kdzoo.CheckpointError, match="not those that were written"):
            read(directory)


def test_files_from_before_there_was_a_hash_are_read(tmp_path: Path) -> None:
    directory, bits = RunDirectory(tmp_path), np.full((3, 5), 7, np.uint8)
    directory.right.write_bytes(safetensors.numpy.save({"right": bits}))
    assert (read_right_rows(directory) == bits).all()
