"""Files that are whole or not at all, and a lock that keeps a second process out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import kdzoo
from kdzoo.training.checkpoint import Checkpoint, load_tensors
from kdzoo.training.curves_file import CurvesTable, read_curves
from kdzoo.training.directory import RunDirectory
from kdzoo.training.weights import NetworkRecipe, load_weights

WRITE = "directory.write(directory.checkpoint, b'y' * 100_000)"
SAVE = "Checkpoint(1, 2, {'a': torch.zeros(100_000)}, {}, {}, {}).save(directory)"


@pytest.mark.parametrize("write", [WRITE, SAVE])
@pytest.mark.parametrize(
    ("signalled", "said"),
    [
        ("signal.SIG_IGN", "RunError {}: cannot be written: File too large"),
        ("interrupt", "KeyboardInterrupt"),  # it comes in the middle
    ],
)
def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, write: str, signalled: str, said: str
) -> None:
    """A real limit on the size of files stands in for a full disk."""
    program = (
        "import pathlib, resource, signal, sys, torch\n"
        "from kdzoo.training.checkpoint import Checkpoint\n"
        "from kdzoo.training.directory import RunDirectory\n"
        "directory = RunDirectory(pathlib.Path(sys.argv[1]))\n"
        "directory.write(directory.checkpoint, b'x' * 1000)\n"
        "def interrupt(number, frame):\n    signal.raise_signal(signal.SIGINT)\n"
        f"signal.signal(signal.SIGXFSZ, {signalled})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"try:\n    {write}\n"
        "except BaseException as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == said.format(tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"x" * 1000
    if signalled == "signal.SIG_IGN":  # else the next run removes what was left
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_lock_keeps_a_second_process_out(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    program = (
        "import pathlib, sys\n"
        "from kdzoo.training.directory import RunDirectory\n"
        "with RunDirectory(pathlib.Path(sys.argv[1])).locked(wait=False):\n    print('in')\n"
    )
    command = [sys.executable, "-c", program, str(directory.path)]
    with directory.locked(wait=False):
        inside = subprocess.run(command, capture_output=True, text=True, check=False)
    after = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "LockedError" in inside.stderr
    assert "another process is working on this run" in inside.stderr
    assert after.stdout == "in\n"


def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    directory = RunDirectory(tmp_path / "runs" / "x")
    lock = directory.locked(wait=False)
    with pytest.raises(kdzoo.RunError, match="cannot be used as run directory"), lock:
        pass


def test_a_run_is_found_by_its_hash_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "old-name-0123456789").mkdir()
    assert RunDirectory.at(tmp_path, "new", "0123456789").path.name == "old-name-0123456789"
    assert RunDirectory.at(tmp_path, "new", "abcdef0123").path.name == "new-abcdef0123"


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(kdzoo.CheckpointError, match="something else than tensors"):
        load_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_in_a_checkpoint_is_named(tmp_path: Path, zipped: bool) -> None:
    """Torch has words of its own for the modules that it blocks."""

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    options = argparse.Namespace(lr=0.05, hook=Evil())
    torch.save({"opt": options}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        kdzoo.CheckpointError, match=r"plain data \((posix|nt)\.system\), which could"
    ):
        load_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert Checkpoint.load(directory) is None
    Checkpoint(1, 2, {"a": torch.zeros(300)}, {}, {}, {}).save(directory)
    whole = directory.checkpoint.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"garbage" * 99, whole[:-1]):
        directory.checkpoint.write_bytes(damaged)
        said = rf"checkpoint\.pt: is (damaged|empty).*; its epochs are lost; remove {tmp_path} to"
        with pytest.raises(kdzoo.CheckpointError, match=said):
            Checkpoint.load(directory)
    directory.checkpoint.unlink()
    directory.checkpoint.mkdir()  # stands in for any reason of the disk
    with pytest.raises(kdzoo.CheckpointError, match=r"cannot be read: Is a directory$"):
        Checkpoint.load(directory)
    directory.checkpoint.rmdir()
    for place in range(0, len(whole), 97):
        directory.checkpoint.write_bytes(flipped(whole, place))
        with contextlib.suppress(kdzoo.CheckpointError):  # names and padding have no checksums
            loaded = Checkpoint.load(directory)
            assert loaded is not None
            assert (loaded.epoch, loaded.step) == (1, 2)
            assert torch.equal(loaded.distiller["a"], torch.zeros(300))
    torch.save({"epoch": 1}, directory.checkpoint)
    with pytest.raises(kdzoo.CheckpointError, match=r"is no checkpoint of this version.*; remove"):
        Checkpoint.load(directory)


def test_curves_read_back_exactly(tmp_path: Path) -> None:
    """Those of training samples and of validation images; all but what no file has."""
    draw = np.random.default_rng(0)
    unwritten = {"learning_rate", "stage"}

    def drawn(**more: Any) -> kdzoo.TeachingCurves:
        names = {field.name for field in dataclasses.fields(kdzoo.TeachingCurves)}
        arrays = {name: draw.random((4, 3)) for name in names - unwritten - more.keys()}
        arrays["student"][2, 1] = np.nan
        return kdzoo.TeachingCurves(**arrays, **more)

    states = draw.integers(0, len(kdzoo.ClassState), (4, 3)).astype(np.float64)
    curves = drawn(state=states, validation=drawn(validation=None))
    file = tmp_path / "classes.csv"
    file.write_bytes(CurvesTable(("a", "b,c", 'd"')).content(curves))
    names, read = read_curves(file)
    assert names == ("a", "b,c", 'd"')
    assert read.validation is not None
    policys = ("teacher_weight", "label_weight", "state")  # the same for all images
    for field in dataclasses.fields(kdzoo.TeachingCurves):
        if field.name in unwritten | {"validation"}:
            continue
        wanted, got = getattr(curves, field.name), getattr(read, field.name)
        np.testing.assert_array_equal(got, wanted, err_msg=field.name)
        if field.name not in policys:
            wanted = getattr(curves.validation, field.name)
        got = getattr(read.validation, field.name)
        np.testing.assert_array_equal(got, wanted, err_msg=f"validation {field.name}")
    file.write_text("epoch,class\n1,a\n")
    with pytest.raises(kdzoo.CheckpointError, match="the curves cannot be read"):
        read_curves(file)


def net(width: int = 4, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


def in_module(state: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def in_distiller(state: dict[str, Any]) -> dict[str, Any]:
    """As a whole distiller saves itself: the teacher's weights have the same names."""
    teachers = {f"teacher.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    students = {f"student.{name}": tensor for name, tensor in state.items()}
    return {**teachers, **students, "regressor.weight": torch.zeros(3)}


def beside_numbers(state: dict[str, Any]) -> dict[str, Any]:
    numbers = {"best_acc": np.float64(0.7), "top5": np.float32(0.9), "step": np.int64(3)}
    return {"epoch": 240, "model": state, "accuracy": torch.tensor(0.7), **numbers}


@pytest.mark.parametrize(
    "names",
    [
        lambda s: s,
        in_module,
        in_distiller,
        lambda s: in_module(in_distiller(s)),
        lambda s: in_module(in_distiller({f"student.{name}": t for name, t in s.items()})),
        lambda s: {f"_orig_mod.module.{name}": t for name, t in s.items()},
        lambda s: {f"net.{name}": t for name, t in s.items()} | {"head.weight": torch.zeros(2)},
    ],
    ids=[
        "bare",
        "module",
        "student",
        "module.student",
        "module.student.student",
        "compiled",
        "net",
    ],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"net": s, "acc": 93.1, "optimizer": {"state": {}, "param_groups": []}},
        lambda s: {"opt": argparse.Namespace(model="resnet56", lr=0.05, steps=[150]), "model": s},
        beside_numbers,
    ],
    ids=["alone", "model", "state_dict", "model.state_dict", "net", "options", "beside numbers"],
)
def test_weights_as_others_save_them(tmp_path: Path, wrap, names) -> None:
    source, target = net(), net()
    torch.save(wrap(names(source.state_dict())), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth", "the teacher")
    assert torch.equal(source[0].weight, target[0].weight)


@pytest.mark.parametrize("name", ["module", "student"])
def test_a_model_may_itself_have_the_name_of_a_wrapper(tmp_path: Path, name: str) -> None:
    source, target = (nn.Sequential(OrderedDict({name: net(), "head": net()})) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth", "the teacher")
    assert torch.equal(source.head[0].weight, target.head[0].weight)


def test_numbers_as_older_numpy_wrote_them(tmp_path: Path) -> None:
    """Its module was numpy.core; files of that time are all over the literature."""
    file = tmp_path / "w.pth"
    state = {"model": net().state_dict(), "best_acc": np.float64(0.7)}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    old = file.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    file.write_bytes(old)
    assert b"numpy.core.multiarray" in old
    assert load_tensors(file)["best_acc"] == 0.7


@pytest.mark.parametrize("value", [np.str_("x"), np.array([{}], object)], ids=["text", "objects"])
def test_of_numpy_only_numbers_are_read(tmp_path: Path, value: Any) -> None:
    torch.save({"best_acc": value}, tmp_path / "w.pth")
    with pytest.raises(kdzoo.CheckpointError, match="something else than tensors"):
        load_tensors(tmp_path / "w.pth")
    assert np.dtype not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (net(5).state_dict(), r"has in another shape 0.weight \(5, 6\) for \(4, 6\)"),
        (net(4, 7).state_dict(), r"has in another shape 2.weight \(7, 4\) for \(3, 4\)"),
        (
            nn.Linear(6, 3).state_dict(),
            r"it lacks 0\.bias, 0\.weight, 1\.bias, .*, and 3 others",
        ),
        ({**net().state_dict(), "x": torch.zeros(1)}, "has, unknown to the model, x"),
        (
            {n: t for n, t in net().state_dict().items() if n != "2.bias"},
            r"the teacher: it lacks 2\.bias$",
        ),
        (  # its inner parts end like a wrapped model's names
            {"0.weight": torch.zeros(4, 6), "1.0.weight": torch.zeros(4, 4)},
            r"it lacks 0\.bias, 1\.bias, 1\.running_mean, .* and 2 others; .*unknown.*, 1\.0",
        ),
        (
            {f"a.b.{name}": t for name, t in nn.Linear(6, 3).state_dict().items()},
            "model, bias, weig",
        ),
        (
            {f"{part}.{name}": t for part in ("a", "b") for name, t in net().state_dict().items()},
            r"several networks of this architecture \(a\., b\.\)",
        ),
        ({"model": {"epoch": 3}}, "holds no state dict"),
        ({**net().state_dict(), "epoch": 3}, "beside tensors it has epoch; remove it"),
        ({"net": net().state_dict(), "ema": net().state_dict()}, r"several state dicts \(net, ema"),
        (net(), r"something else .*torch\.nn\.modules.* save a state dict"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path: Path, state, message: str) -> None:
    torch.save(state, tmp_path / "w.pth")
    model = net()
    before = model[0].weight.clone()
    with pytest.raises(kdzoo.CheckpointError, match=message):
        load_weights(model, tmp_path / "w.pth", "the teacher")
    assert torch.equal(before, model[0].weight)


def test_weights_from_before_batches_were_counted_are_loaded(tmp_path: Path) -> None:
    state = net().state_dict()
    old = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"model": in_module(old)}, tmp_path / "w.pth")
    model = net()
    load_weights(model, tmp_path / "w.pth", "the teacher")
    assert torch.equal(model[0].weight, state["0.weight"])


def test_accuracies_beside_the_weights_may_be_arrays(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save({"model": state, "best": np.float64(0.7), "all": np.arange(3.0)}, tmp_path / "w.pth")
    model = net()
    load_weights(model, tmp_path / "w.pth", "the teacher")
    assert torch.equal(model[0].weight, state["0.weight"])


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (gzip.compress(b"weights", mtime=0), "is packed with gzip; unpack it first"),
        (b"\n<!DOCTYPE html><html>", "is a web page and no checkpoint; download it again"),
        (b"weights", "is damaged|cannot be read"),
    ],
)
def test_a_file_that_never_was_a_checkpoint_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kdzoo.CheckpointError, match=rf"{name}: ({message})"):
        load_weights(net(), tmp_path / name, "the teacher")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_with_the_other_formats_name_are_told_their_own(
    tmp_path: Path, zipped: bool
) -> None:
    state = net().state_dict()
    file = tmp_path / "w.safetensors"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(kdzoo.CheckpointError, match=r"is what torch\.save writes; .* \.pth$"):
        load_weights(net(), file, "the teacher")
    safetensors.torch.save_file(state, tmp_path / "w.pth")
    with pytest.raises(kdzoo.CheckpointError, match=r"is a safetensors file; .* \.safetensors$"):
        load_weights(net(), tmp_path / "w.pth", "the teacher")


def test_a_recipe_travels_with_the_weights(tmp_path: Path) -> None:
    recipe = NetworkRecipe("mlp", {"widths": [5]}, (1, 2, 3), ("a", "b"), (0.3,), (0.2,))
    network, _ = recipe.build(seed=3)
    directory = RunDirectory(tmp_path)
    recipe.save(network, directory)
    loaded = kdzoo.load_student(tmp_path)
    images = torch.rand(4, 1, 2, 3)
    assert torch.equal(loaded(images), network.eval()(images))
    assert not loaded.training
    whole = directory.student.read_bytes()
    for damaged in (whole[:-4], flipped(whole, len(whole) - 3), flipped(whole, 20)):
        directory.student.write_bytes(damaged)
        with pytest.raises(kdzoo.CheckpointError, match=r"student\.safetensors: cannot be read"):
            kdzoo.load_student(tmp_path)
    with pytest.raises(kdzoo.CheckpointError, match=r"student\.safetensors: is a file; name the d"):
        kdzoo.load_student(directory.student)
    with pytest.raises(kdzoo.CheckpointError, match="holds no trained student"):
        kdzoo.load_student(tmp_path / "nowhere")


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    recipe = NetworkRecipe("mlp", {}, (1, 1, 3), ("a", "b", "c"), (0.0,), (1.0,))
    network = kdzoo.Network(Tied(), (0.0,), (1.0,))
    recipe.save(network, RunDirectory(tmp_path))
    other = Tied()
    load_weights(other, tmp_path / "student.safetensors", "the student")
    assert torch.equal(other.b.weight, network.model.a.weight)
