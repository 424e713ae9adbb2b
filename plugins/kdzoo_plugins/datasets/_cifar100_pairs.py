"""The eleven pairs of networks on which the literature compares methods on CIFAR-100."""

from __future__ import annotations

__all__ = ["CIFAR100_PAIRS", "PAIRS"]

PAIRS = (  # teacher, student, beta of DKD (Zhao et al., 2022)
    ("resnet56", "resnet20", 2),
    ("resnet110", "resnet32", 2),
    ("resnet32x4", "resnet8x4", 8),
    ("wrn_40_2", "wrn_16_2", 6),
    ("wrn_40_2", "wrn_40_1", 6),
    ("vgg13", "vgg8", 6),
    ("resnet32x4", "ShuffleV1", 8),
    ("wrn_40_2", "ShuffleV1", 8),
    ("vgg13", "MobileNetV2", 6),
    ("ResNet50", "MobileNetV2", 8),
    ("resnet32x4", "ShuffleV2", 8),
)

_SPEC = """\
# {teacher} teaches {student} on CIFAR-100: the literature's recipe of 240 epochs.
#   kdzoo run {name}.yaml
# Another method than KD:
#   kdzoo run {name}.yaml --set 'losses=[ce, {{use: dkd, beta: {beta}}}]'
#   kdzoo run {name}.yaml --set 'losses=[ce, fitnet]'
#   kdzoo run {name}.yaml --set 'losses=[ce, crd]'
name: {name}
seed: 0

# The published recipes train on all 50,000 images and keep none for validation.
data: {{use: torchvision, dataset: CIFAR100, root: data, download: true, validation: 0}}

# Trained here once, and found again by the other specs. For published weights, instead of all this:
#   teacher: {{use: {teacher}, checkpoint: ckpt_epoch_240.pth}}
teacher:
  use: {teacher}
  seed: 0
  train: {{epochs: 240, {batch}, optimizer: {{{sgd}, lr: 0.05}}, schedule: {{{steps}}}}}
student: {student}

train: {{epochs: 240, {batch}, optimizer: {{{sgd}, lr: {lr}}}, schedule: {{{steps}}}}}

losses:
  - {{use: ce, weight: 0.1}}
  - {{use: kd, weight: 0.9, temperature: 4}}
"""


def _spec(teacher: str, student: str, beta: int) -> tuple[str, str]:
    name = f"cifar100-{teacher}-{student}"
    text = _SPEC.format(
        name=name,
        teacher=teacher,
        student=student,
        beta=beta,
        batch="batch_size: 64",
        sgd="use: sgd, momentum: 0.9, weight_decay: 5.0e-4",
        steps="use: multistep, milestones: [150, 180, 210], gamma: 0.1",
        lr=0.01 if student.startswith(("Shuffle", "MobileNet")) else 0.05,
    )
    return name, text


CIFAR100_PAIRS = dict(_spec(*pair) for pair in PAIRS)
"""A complete spec of each pair, as YAML, by name."""
