"""The handwritten digits that scikit-learn ships."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

import kdzoo

__all__ = ["Digits"]

_STARTER = """\
# A first distillation: handwritten digits, about 21 s on two cores.
#   kdzoo run digits.yaml
#   tensorboard --logdir runs
name: digits-tllm     # the first part of the run directory's name
seed: 0               # every random stream derives from it
data: digits          # a data source; 10 % of its training images are for validation

# The teacher is trained first, in a run of its own that later runs find again.
# What its own `train` does not say is at the default, not as below.
teacher: {use: small-cnn, width: 64, train: {epochs: 20}}
student: {use: small-cnn, width: 4}

baseline: true        # train the same student without the teacher too

train:
  epochs: 30
  batch_size: 64
  # torch's own optimizers and schedules, by name, with their own arguments
  optimizer: {use: sgd, lr: 0.05, momentum: 0.9, weight_decay: 5.0e-4}
  schedule: {use: multistep, milestones: [15, 25]}

losses:               # the total loss is the weighted sum of these terms
  - {use: ce, weight: 0.1}                    # cross entropy with the labels
  - {use: kd, weight: 0.9, temperature: 4}    # soft targets (Hinton et al., 2015)

# Stop teaching the classes that the teacher makes worse; first check after epoch 10.
policy: {use: tllm, start_epoch: 10}
"""


_FITNET = """\
# FitNets as in the paper (Romero et al., 2015), on the handwritten digits: first the hint trains
# the student's lower half alone, then the soft targets train all of it.
#   kdzoo run digits-fitnet-two-stage.yaml
name: digits-fitnet-two-stage
seed: 0
data: digits

teacher: {use: small-cnn, width: 64, train: {epochs: 20}}
student: {use: small-cnn, width: 4}
baseline: true

stages:
  - train: {epochs: 10, optimizer: {use: sgd, lr: 0.01, momentum: 0.9}}
    losses:
      - {use: fitnet, weight: 1, layers: {student: 1, teacher: 1}}
    # What lies above the hint layer does not learn yet.
    learn: [student.block0, student.block1, losses]

  - train:
      epochs: 30
      optimizer: {use: sgd, lr: 0.05, momentum: 0.9, weight_decay: 5.0e-4}
      schedule: {use: multistep, milestones: [15, 25]}
    losses:
      - {use: ce, weight: 0.1}
      - {use: kd, weight: 0.9, temperature: 4}
    learn: [student]
"""


class Digits(kdzoo.DataSource):
    """1,797 handwritten digits, 8x8 pixels, 10 classes, from scikit-learn; nothing to download.

    Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998). The set has no
    split of its own: here every third image of each class, in the set's order, is for testing.
    """

    name = "digits"
    starters: ClassVar = {"digits": _STARTER, "digits-fitnet-two-stage": _FITNET}

    def load(self) -> kdzoo.ImageData:
        """See :meth:`kdzoo.DataSource.load`."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Pixels are counts from 0 to 16.
        images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
        targets = torch.from_numpy(digits.target).long()
        number_in_class = torch.zeros_like(targets)
        for label in range(10):
            number_in_class[targets == label] = torch.arange(int((targets == label).sum()))
        test = number_in_class % 3 == 2
        pixels = images[~test].double() / 255
        return kdzoo.ImageData(
            train_images=images[~test],
            train_targets=targets[~test],
            test_images=images[test],
            test_targets=targets[test],
            classes=tuple(str(label) for label in range(10)),
            mean=(round(float(pixels.mean()), 4),),
            std=(round(float(pixels.std()), 4),),
            crop=1,
        )


@kdzoo.hookimpl
def kdzoo_datasets() -> list[type[kdzoo.DataSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Digits]
