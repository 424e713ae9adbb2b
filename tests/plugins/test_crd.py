"""CRD: golden values, an independent oracle, its negatives, its memory, several processes."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdzoo_plugins.losses.crd import CRD, ContrastMemory
from pictures import write_mnist, write_pictures
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import kdzoo
from kdzoo.pipeline.runs import run
from kdzoo.testing.processes import in_two_processes

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "crd.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def golden_memory() -> ContrastMemory:
    memory = ContrastMemory(8, 12, 200, dimensions=16, temperature=0.07, momentum=0.5).double()
    with torch.no_grad():
        for side, layer in (("s", memory.embed_student), ("t", memory.embed_teacher)):
            layer.weight.copy_(golden(f"embed_{side}_weight"))
            layer.bias.copy_(golden(f"embed_{side}_bias"))
    memory.memory_student.copy_(golden("memory_student_initial"))
    memory.memory_teacher.copy_(golden("memory_teacher_initial"))
    return memory


def test_golden_values() -> None:
    memory = golden_memory()
    for step in range(3):
        student = golden(f"student_feature_{step}").requires_grad_()
        rows = memory(
            student,
            golden(f"teacher_feature_{step}"),
            golden(f"index_{step}"),
            golden(f"contrast_index_{step}"),
        )
        loss = rows.mean()
        loss.backward()
        np.testing.assert_allclose(loss.item(), GOLDEN[f"loss_{step}"], rtol=1e-9)
        wanted = GOLDEN[f"grad_student_feature_{step}"]
        np.testing.assert_allclose(student.grad, wanted, rtol=1e-9, atol=1e-14)
    for side in ("student", "teacher"):
        kept = getattr(memory, f"memory_{side}")
        np.testing.assert_allclose(kept, GOLDEN[f"memory_{side}_final"], rtol=1e-9, atol=1e-15)
    normalizers = [GOLDEN["normalizer_student"], GOLDEN["normalizer_teacher"]]
    np.testing.assert_allclose(memory.normalizers, normalizers, rtol=1e-9)


def oracle(memory: ContrastMemory, s: Tensor, t: Tensor, contrast: Tensor) -> list[float]:
    """The published loss of each sample, number by number."""

    def embedded(layer: Any, feature: Tensor) -> list[float]:
        vector = [
            math.fsum(w * x for w, x in zip(row, feature.tolist(), strict=True)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        length = math.sqrt(math.fsum(v * v for v in vector))
        return [v / length for v in vector]

    def side(embeddings: list[list[float]], bank: Tensor, z: float) -> list[float]:
        answers = []
        for vector, columns in zip(embeddings, contrast.tolist(), strict=True):
            p = [
                math.exp(
                    math.fsum(a * b for a, b in zip(vector, bank[c].tolist(), strict=True))
                    / memory.temperature
                )
                / z
                for c in columns
            ]
            noise = (len(p) - 1) / len(bank)
            answers.append(
                -math.log(p[0] / (p[0] + noise + 1e-7))
                - math.fsum(math.log(noise / (q + noise + 1e-7)) for q in p[1:])
            )
        return answers

    ours = side(
        [embedded(memory.embed_student, row) for row in s],
        memory.memory_teacher,
        float(memory.normalizers[0]),
    )
    theirs = side(
        [embedded(memory.embed_teacher, row) for row in t],
        memory.memory_student,
        float(memory.normalizers[1]),
    )
    return [a + b for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize(("rows", "negatives"), [(10, 3), (40, 39), (7, 20)])
def test_the_oracle(rows: int, negatives: int) -> None:
    torch.manual_seed(rows)
    memory = ContrastMemory(5, 9, rows, dimensions=4, temperature=0.2).double().eval()
    memory.normalizers.copy_(torch.tensor([31.0, 47.0]))
    s, t = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    contrast = torch.randint(rows, (3, 1 + negatives))  # with rows that come twice
    ours = memory(s, t, torch.arange(3), contrast)
    np.testing.assert_allclose(ours.detach(), oracle(memory, s, t, contrast), rtol=1e-9)


def test_the_momentum_is_what_is_kept() -> None:
    memory = ContrastMemory(5, 9, 10, dimensions=4, momentum=0.9).double()
    old = memory.memory_student[3].clone()
    s, t = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 9, dtype=torch.float64)
    memory(s, t, torch.tensor([3]), torch.tensor([[3, 1, 2]]))
    new = nn.functional.normalize(memory.embed_student(s))[0].detach()
    wanted = nn.functional.normalize(0.9 * old + 0.1 * new, dim=0)
    torch.testing.assert_close(memory.memory_student[3], wanted)


def test_gradcheck_of_everything_that_learns() -> None:
    torch.manual_seed(0)
    memory = ContrastMemory(3, 4, 20, dimensions=5, temperature=0.3).double().eval()
    memory.normalizers.copy_(torch.tensor([25.0, 30.0]))
    contrast = torch.randint(20, (2, 7))
    names = [name for name, _ in memory.named_parameters()]

    def loss(s: Tensor, *parameters: Tensor) -> Tensor:
        arguments = (s, teacher, torch.arange(2), contrast)
        return torch.func.functional_call(
            memory, dict(zip(names, parameters, strict=True)), arguments
        )

    teacher = torch.randn(2, 4, dtype=torch.float64)
    student = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (student, *memory.parameters()))


def test_the_gradient_is_that_of_the_memory_before_it_changed() -> None:
    """With autograd through scores that are gathered vector by vector."""
    torch.manual_seed(0)
    memory = ContrastMemory(6, 6, 30, dimensions=8).double()
    before = copy.deepcopy(memory)
    s, t = torch.randn(2, 4, 6, dtype=torch.float64).unbind()
    s.requires_grad_()
    rows, contrast = torch.arange(4), torch.randint(30, (4, 11))
    contrast[:, 0] = rows  # the very rows that change
    memory(s, t, rows, contrast).sum().backward()
    ours, s.grad = s.grad, None

    def published(embedded: Tensor, bank: Tensor) -> Tensor:
        scores = torch.einsum("bd,bkd->bk", embedded, bank[contrast]).div(0.07).exp()
        p = scores / (scores.mean() * 30).detach()
        noise = 10 / 30
        total = p + noise + 1e-7
        return -(p[:, 0] / total[:, 0]).log() - (noise / total[:, 1:]).log().sum(1)

    embedded = nn.functional.normalize(before.embed_student(s))
    published(embedded, before.memory_teacher).sum().backward()
    torch.testing.assert_close(ours, s.grad, rtol=1e-9, atol=1e-12)


def set_up(targets: Tensor, **params: Any) -> CRD:
    params = {"negatives": 6, "dimensions": 4, **params}
    loss = CRD(CRD.Params(**params))
    loss.targets = targets
    shapes = [kdzoo.Shapes(logits=(9,), features={"penultimate": (size,)}) for size in (5, 7)]
    loss.setup(*shapes, num_classes=int(targets.max()) + 1, num_samples=len(targets))
    return loss


UNEVEN = torch.tensor([0] * 3 + [1] * 10 + [2] * 1 + [3] * 6)[torch.randperm(20)]


def drawn(loss: CRD, anchors: Tensor, times: int = 1) -> Tensor:
    """(times, B, N): how often each row of the memories was drawn for each anchor."""
    found = torch.zeros(times, len(anchors), len(loss.label), dtype=torch.int64)
    for step in range(times):
        block, counts = loss.negatives(anchors)
        assert len(block.unique()) == len(block)
        assert counts.shape == (len(anchors), len(block))
        found[step, :, block] = counts.long()
    return found


@pytest.mark.parametrize(
    "targets",
    [torch.arange(40) % 4, UNEVEN, torch.arange(100) % 20],
    ids=["even", "uneven", "many"],  # of many rows not all are looked at
)
def test_negatives_are_of_other_classes_each_once_and_uniform(targets: Tensor) -> None:
    torch.manual_seed(0)
    loss = set_up(targets)
    anchors = torch.arange(int(targets.max()) + 1)
    found = drawn(loss, anchors, times=5000)
    assert (found.sum(2) == 6).all()
    assert found.max() == 1
    targets = targets.sort().values  # as the memories keep them
    for label in anchors.tolist():
        counts = found[:, label].sum(0)
        others = targets != label
        assert (counts[~others] == 0).all()
        expected = 6 * 5000 / int(others.sum())
        # Five standard deviations of a count.
        assert (counts[others] - expected).abs().max() < 5 * math.sqrt(expected)
        # And two rows come together as often as if each draw were a random set.
        rows = torch.nonzero(others).flatten()
        together = (found[:, label, rows[0]] & found[:, label, rows[-1]]).sum()
        expected *= 5 / (len(rows) - 1)
        assert abs(together - expected) < 5 * math.sqrt(expected)


def test_each_step_has_negatives_of_its_own() -> None:
    torch.manual_seed(0)
    found = drawn(set_up(torch.arange(400) % 4), torch.zeros(3, dtype=torch.int64), times=20)
    assert (found[:, 0] == found[:, 1]).all()  # images of one class share them
    assert len(found[:, 0].unique(dim=0)) > 15


class Largest(TorchDispatchMode):
    """Finds the results of operations that are as large as the bank, but for the buffers."""

    def __init__(self, rows: int, buffers: Iterable[Tensor]) -> None:
        super().__init__()
        self.rows = rows
        self.known = {buffer.untyped_storage().data_ptr() for buffer in buffers}
        self.found: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        answer = operation(*args, **(kwargs or {}))
        for result in answer if isinstance(answer, (list, tuple)) else [answer]:
            large = isinstance(result, Tensor) and result.numel() >= self.rows
            if large and result.untyped_storage().data_ptr() not in self.known:
                self.found.append(str(operation))
        return answer


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_no_step_touches_the_whole_bank(mode: str) -> None:
    targets, indices = torch.arange(20_000) % 2000, torch.tensor([3, 17, 20])
    loss = set_up(targets, mode=mode)
    with Largest(len(targets), loss.buffers()) as largest:
        loss(*outputs(loss, 3), batch(indices, targets)).sum().backward()
    assert not largest.found


def test_negatives_come_again_only_where_there_are_too_few() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([0] * 8 + [1] * 3 + [2] * 2)
    loss = set_up(targets, negatives=7)  # class 0 has 5 others, 1 and 2 have 10 and 11
    found = drawn(loss, torch.tensor([0, 1, 2]), times=400)
    assert (found.sum(2) == 7).all()
    assert all((found[:, label, targets == label] == 0).all() for label in range(3))
    assert found[:, 1:].max() == 1
    counts = found[:, 0].sum(0)[8:]
    assert (counts - 560).abs().max() < 5 * math.sqrt(560)


def test_rows_that_are_held_out_are_never_met() -> None:
    targets = torch.tensor([0, -1, 1, 0, 2, -1, 1, 2])
    loss = set_up(targets, negatives=4)
    assert len(loss.contrast.memory_student) == 6
    assert loss.row.tolist() == [0, -1, 2, 1, 4, -1, 3, 5]
    kept = targets[targets >= 0].sort().values
    found = drawn(loss, torch.tensor([0, 1, 2]))[0]
    assert all((found[label, kept == label] == 0).all() for label in range(3))


def test_positives() -> None:
    targets = torch.arange(30) % 3
    loss, own = set_up(targets), torch.tensor([1, 0, 2])
    rows = loss.row[torch.tensor([4, 9, 2])]
    assert torch.equal(loss.positives(rows, own), rows)
    relaxed = set_up(targets, mode="relax")
    found = torch.stack([relaxed.positives(rows, own) for _ in range(300)], 1)
    targets = targets.sort().values  # as the memories keep them
    assert (targets[found] == own[:, None]).all()
    assert all(len(set(row.tolist())) == 10 for row in found)


def test_positives_of_a_class_are_uniform_and_each_image_has_its_own() -> None:
    targets = torch.arange(30) % 3
    loss, own = set_up(targets, mode="relax"), torch.tensor([0, 0, 2])
    rows = loss.row[torch.tensor([3, 9, 2])]
    torch.manual_seed(0)
    found = torch.stack([loss.positives(rows, own) for _ in range(5000)], 1)
    for drawn_rows, label in zip(found, own.tolist(), strict=True):
        counts = drawn_rows.bincount(minlength=30)[10 * label : 10 * label + 10]
        assert (counts - 500).abs().max() < 5 * math.sqrt(500)
    # Two images of a class meet the same one as often as chance has it.
    assert abs(int((found[0] == found[1]).sum()) - 500) < 5 * math.sqrt(500)
    answers = []
    for order in ([0, 1, 2], [2, 0, 1], [1]):
        torch.manual_seed(1)
        answers.append(dict(zip(order, loss.positives(rows[order], own[order]), strict=True)))
    assert all(answers[0][i] == value for answer in answers for i, value in answer.items())


def outputs(loss: CRD, rows: int) -> tuple[kdzoo.Outputs, kdzoo.Outputs]:
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(rows, 5, generator=generator, requires_grad=True)
    t = torch.randn(rows, 7, generator=generator)
    empty = torch.zeros(rows, 9)
    return kdzoo.Outputs(empty, {"penultimate": s}), kdzoo.Outputs(empty, {"penultimate": t})


def batch(indices: Tensor, targets: Tensor, weights: Tensor | None = None) -> kdzoo.Batch:
    ones = torch.ones(len(indices))
    return kdzoo.Batch(
        inputs=torch.zeros(len(indices), 1, 2, 2),
        targets=targets[indices],
        indices=indices,
        weights=ones if weights is None else weights,
        progress=0.0,
    )


@pytest.mark.parametrize("negatives", [6, 90])
def test_a_block_of_negatives_gives_what_their_rows_give(negatives: int) -> None:
    """Each once (6), and some of them several times (90: there are not so many others)."""
    targets = torch.arange(40) % 4
    loss, indices = set_up(targets, negatives=negatives), torch.tensor([3, 17, 20])
    rows, (student, teacher) = loss.row[indices], outputs(loss, 3)
    features = [found.features["penultimate"] for found in (student, teacher)]
    block, counts = loss.negatives(targets[indices])
    contrast = torch.stack(
        [torch.cat([rows[i : i + 1], block.repeat_interleave(counts[i].long())]) for i in range(3)]
    )
    assert contrast.shape == (3, 1 + negatives)
    memory = loss.contrast
    by_rows = copy.deepcopy(memory)(*features, rows, contrast)
    by_block = memory.contrasted(*features, rows, rows, block, counts)
    torch.testing.assert_close(by_block, by_rows)
    ours, theirs = (
        torch.autograd.grad(value.sum(), student.features["penultimate"])[0]
        for value in (by_block, by_rows)
    )
    torch.testing.assert_close(ours, theirs)


def test_evaluation_changes_nothing_and_training_the_batch_alone() -> None:
    targets = torch.arange(40) % 4
    loss, indices = set_up(targets), torch.tensor([3, 17, 20])
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(*outputs(loss, 3), batch(indices, targets))
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    loss.train()(*outputs(loss, 3), batch(indices, targets))
    assert (loss.contrast.normalizers > 0).all()
    first = loss.contrast.normalizers.clone()
    changed = (loss.contrast.memory_student != before["contrast.memory_student"]).any(1)
    assert torch.nonzero(changed).flatten().tolist() == sorted(loss.row[indices].tolist())
    loss(*outputs(loss, 3), batch(indices, targets))
    assert torch.equal(loss.contrast.normalizers, first)


def test_a_class_policy_weights_anchors_and_nothing_else() -> None:
    """Every row still updates the memory, sets the normalizers and serves as negative."""
    targets = torch.arange(40) % 4
    indices = torch.tensor([0, 1, 2, 3, 4, 5])
    taught, untaught = (set_up(targets) for _ in range(2))
    untaught.load_state_dict(taught.state_dict())
    rows, states = [], []
    for loss, weights in ((taught, torch.ones(6)), (untaught, (targets[indices] != 1).float())):
        torch.manual_seed(0)
        rows.append(loss(*outputs(loss, 6), batch(indices, targets, weights)))
        states.append(loss.state_dict())
    assert torch.equal(rows[0], rows[1])  # the engine applies row i's weight
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_it_says_what_it_cannot_do() -> None:
    with pytest.raises(kdzoo.SpecError, match="two classes at least"):
        set_up(torch.zeros(5, dtype=torch.int64))
    loss = CRD()
    loss.layers = loss.layers * 2
    loss.targets = torch.arange(4)
    with pytest.raises(kdzoo.SpecError, match="one pair of layers, not 2"):
        loss.setup(*[kdzoo.Shapes((4,), {"penultimate": (3,)})] * 2, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(
        kdzoo.SpecError, match="samples than the batch's: pass the targets of the train"
    ):
        kdzoo.Distiller(
            copy.deepcopy(model),
            model,
            kdzoo.terms([{"use": "crd", "layers": {"student": "0", "teacher": "0"}}]),
            example=torch.rand(2, 1, 2, 2),
            classes=["a", "b"],
            num_samples=10,
        )


def planted_set(root: Path) -> dict[str, Any]:
    del root
    return {"use": "planted", "per_class": 12}


def folders(root: Path) -> dict[str, Any]:
    return {"use": "image-folder", "root": str(write_pictures(root)), "size": 12}


def streamed(root: Path) -> dict[str, Any]:
    return {**folders(root), "memory_gb": 0.0, "workers": 1}


def mnist(root: Path) -> dict[str, Any]:
    write_mnist(root)
    return {"use": "torchvision", "dataset": "MNIST", "root": str(root)}


def digits(root: Path) -> dict[str, Any]:
    del root
    return {"use": "digits"}


@pytest.mark.parametrize(
    "data",
    [
        planted_set,
        folders,
        pytest.param(streamed, marks=pytest.mark.slow),
        mnist,
        pytest.param(digits, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_every_data_source_goes_on_exactly(
    tmp_path: Path, tiny: dict[str, Any], data: Callable[[Path], dict[str, Any]]
) -> None:
    """Killed after its second epoch, it ends in the same weights, and with every image's embedding
    in the memories: those that never entered are not of length 1."""
    tiny["data"] = data(tmp_path / "data")
    tiny["losses"] = ["ce", {"use": "crd", "negatives": 20, "dimensions": 8, "mode": "relax"}]
    whole = run(tiny, runs=tmp_path / "whole").directory
    cut = tmp_path / "cut"
    original, calls = kdzoo.Distiller.end_epoch, []

    def dies(distiller: kdzoo.Distiller, rate: float) -> Any:
        if "crd" in distiller.losses:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
        return original(distiller, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdzoo.Distiller, "end_epoch", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, runs=cut)
    again = run(tiny, runs=cut).directory
    for name in ("student.safetensors", "classes.csv", "metrics.jsonl"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    state = torch.load(again / "checkpoint.pt", weights_only=True)["distiller"]
    for name in ("memory_student", "memory_teacher"):
        lengths = state[f"losses.crd.contrast.{name}"].norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def _one_of_two(rank: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    memory, rows = golden_memory(), []
    part = slice(0, 4) if rank == 0 else slice(4, 6)  # the second process has the short batch
    for step in range(3):
        inputs = [
            golden(f"{name}_{step}")[part]
            for name in ("student_feature", "teacher_feature", "index", "contrast_index")
        ]
        rows.append(memory(*inputs).detach())
    if rank == 0:  # evaluation needs no other process
        memory.eval()(*inputs)
    return rows, dict(memory.named_buffers())


def test_two_processes_keep_one_bank() -> None:
    """The published values come out although the batch is shared between two processes."""
    (first, kept), (second, other) = in_two_processes(_one_of_two)
    for step in range(3):
        rows = torch.cat([first[step], second[step]])
        np.testing.assert_allclose(rows.mean(), GOLDEN[f"loss_{step}"], rtol=1e-9)
    assert all(torch.equal(kept[name], other[name]) for name in kept)
    for side in ("student", "teacher"):
        final = kept[f"memory_{side}"]
        np.testing.assert_allclose(final, GOLDEN[f"memory_{side}_final"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("indices", "classes", "message"),
    [
        (
            [-1, -2],
            [0, 1],
            "the indices are -2 to -1; they must be rows of the training set",
        ),
        ([3, 8], [0, 1], "the indices are 3 to 8; they must be rows of the training set, 0 to 7"),
        ([0, 1], [0, 0], "the targets say is not trained on"),
        ([0, 2], [0, 2], "the batch's targets are not those of its rows"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(
    indices: list[int], classes: list[int], message: str
) -> None:
    loss = set_up(torch.tensor([0, -1, 1, 0, 2, -1, 1, 2]), negatives=4)
    before = copy.deepcopy(loss.state_dict())
    targets = torch.zeros(9, dtype=torch.int64)
    shown = dataclasses.replace(
        batch(torch.tensor([0, 1]), targets),
        indices=torch.tensor(indices),
        targets=torch.tensor(classes),
    )
    with pytest.raises(kdzoo.SpecError, match=message):
        loss(*outputs(loss, 2), shown)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_banks_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the momentum is 2\.0; it must be from 0 to 1"):
        ContrastMemory(3, 3, 9, momentum=2.0)
    with pytest.raises(ValueError, match="num_samples is 0; it must be 1 or more"):
        ContrastMemory(3, 3, 0)


@pytest.mark.parametrize("temperature", [0.005, float("nan"), float("inf")])
def test_a_temperature_that_single_precision_cannot_take_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"the temperature is {temperature}; it must be finite"):
        ContrastMemory(3, 3, 9, temperature=temperature)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student": torch.ones(4, 5)}, r"the student's feature is \(4, 5\); it must be \(4, 3\)"),
        ({"teacher": torch.ones(1, 5)}, r"the teacher's feature is \(1, 5\); it must be \(4, 5\)"),
        ({"rows": torch.zeros(4, 1, dtype=torch.int64)}, r"rows is \(4, 1\); it must be \(4,\)"),
        ({"rows": torch.tensor([0, 1, 2, -1])}, "rows has -1 to 2; they must be rows of the memo"),
        ({"rows": torch.zeros(4)}, "rows is torch.float32; it must be int64"),
        ({"contrast": torch.arange(4)}, r"contrast is \(4,\); it must be \(B, 1 \+ K\), K 1 at le"),
        ({"contrast": torch.arange(4)[:, None]}, r"contrast is \(4, 1\); it must be \(B, 1 \+ K"),
        ({"contrast": torch.ones(1, 3, dtype=torch.int64)}, r"positives is \(1,\); it must be \(4"),
        ({"contrast": torch.full((4, 3), 9)}, "contrast has 9 to 9; they must be .*, 0 to 8"),
    ],
)
def test_the_memories_refuse_what_does_not_fit_and_stay_as_they_were(
    changed: dict[str, Tensor], message: str
) -> None:
    memory = ContrastMemory(3, 5, 9, dimensions=4)
    before = copy.deepcopy(memory.state_dict())
    fitting = {
        "student": torch.ones(4, 3),
        "teacher": torch.ones(4, 5),
        "rows": torch.arange(4),
        "contrast": torch.arange(12).view(4, 3) % 9,
    }
    assert memory.eval()(*fitting.values()).shape == (4,)
    with pytest.raises(ValueError, match=message):
        memory.train()(*(fitting | changed).values())
    assert all(torch.equal(before[name], value) for name, value in memory.state_dict().items())
