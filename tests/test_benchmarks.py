"""The benchmarks run, and compare what they say: no timing is looked at."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kdzoo_plugins.datasets._cifar100_pairs import PAIRS
from kdzoo_plugins.losses.crd import ContrastMemory
from kdzoo_plugins.losses.dkd import dkd_loss
from kdzoo_plugins.losses.kd import kd_loss
from pictures import write_pictures
from warm import Warm

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
METHODS = ["ce", "kd", "fitnet", "crd", "dkd"]
OURS = {"contestants", *(path.stem for path in BENCHMARKS.glob("*.py"))}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]


@pytest.fixture
def plain(benchmarks: None) -> ModuleType:
    return importlib.import_module("contestants.plain")


@pytest.mark.slow
def test_the_step_benchmark_shows_every_contestant(tmp_path: Path, warm: Warm) -> None:
    small = "--rounds 1 --steps 2 --skip 1 --batch 8 --samples 320 --classes 10 --negatives 32"
    done = warm.run(
        *(str(BENCHMARKS / "step.py"), "--pairs", "resnet8:resnet8", *small.split()),
        *("--workers", "0", "--threads", "1", "--output", str(tmp_path / "step")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "step.txt").read_text() == done.stdout
    record = json.loads((tmp_path / "step.json").read_text())
    assert record["machine"]["cores"] >= 1
    (methods,) = record["tables"]
    assert [label for label, _ in methods["rows"]] == METHODS
    there = importlib.util.find_spec("torchdistill") is not None
    assert ("torchdistill is not installed" in done.stdout) is not there
    others = ["plain", *(["torchdistill"] if there else [])]
    compared = ["tllm / kdzoo", *(f"kdzoo / {name}" for name in others)]
    assert methods["columns"] == ["kdzoo", "tllm", *others, *compared]
    cannot = {("dkd", "torchdistill"): "has no dkd", ("ce", "tllm"): "there is no teacher"}
    for method, cells in methods["rows"]:
        for name, cell in zip(methods["columns"], cells, strict=True):
            reasons = [
                cannot[method, each] for each in name.split(" / ") if (method, each) in cannot
            ]
            if reasons:
                assert cell["shown"] == "-"
                assert reasons[0] in done.stdout
                continue
            (value,) = cell["values"]
            assert value > 0
            assert cell["shown"] in done.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--samples", "1000"], "an epoch would end within a round"),
        (["--pairs", "resnet8"], "a pair is TEACHER:STUDENT"),
        (["--skip", "0"], "must be 1 at least"),
        pytest.param(
            ["--device", "cuda"],
            "torch finds none; use cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    wrong: list[str],
    message: str,
    benchmarks: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py", *wrong])
    with pytest.raises(SystemExit):
        importlib.import_module("step").arguments()
    assert message in capsys.readouterr().err


def test_the_plain_loop_computes_what_kdzoo_does(plain: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, generator=generator)
    targets = torch.randint(10, (6,), generator=generator)
    torch.testing.assert_close(
        plain.soft_targets(student, teacher, 4.0), kd_loss(student, teacher, 4.0).mean()
    )
    torch.testing.assert_close(
        plain.decoupled(student, teacher, targets, 1.0, 8.0, 4.0),
        dkd_loss(student, teacher, targets, 1.0, 8.0, 4.0).mean(),
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loop_has_everything_on_the_jobs_device(
    method: str, plain: ModuleType, tmp_path: Path
) -> None:
    """On torch's device without numbers, where a step gets as far as the first number it reads."""
    job = importlib.import_module("contestants.job")
    job.write_teacher("resnet8", 10, tmp_path / "teacher.pt")
    given = job.Job(
        pair=("resnet8", "resnet8"),
        method=method,
        teacher_file=str(tmp_path / "teacher.pt"),
        batch=8,
        samples=40,
        threads=1,
        classes=10,
        negatives=4,
        device="meta",
    )
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        next(plain.loop(given, 0))


def test_kdzoo_trains_on_the_jobs_device(benchmarks: None) -> None:
    job, engine = (importlib.import_module(f"contestants.{name}") for name in ("job", "engine"))
    given = job.Job(("resnet8", "resnet8"), "kd", "teacher.pt", 8, 40, 1, device="cuda")
    assert engine.spec(given)["device"] == "cuda"


def test_the_plain_contrast_is_kdzoos(plain: ModuleType) -> None:
    torch.manual_seed(0)
    ours, theirs = ContrastMemory(5, 7, 40), plain.Contrast(5, 7, 40)
    theirs.embed_student.linear.load_state_dict(ours.embed_student.state_dict())
    theirs.embed_teacher.linear.load_state_dict(ours.embed_teacher.state_dict())
    for bank in ("memory_student", "memory_teacher"):
        getattr(theirs, bank).copy_(getattr(ours, bank))
    for start in (0, 6):  # the second step has the first one's normalizers and memories
        rows = torch.arange(start, start + 6)
        contrast = torch.cat([rows[:, None], torch.randint(40, (6, 8))], 1)
        features = torch.randn(6, 5), torch.randn(6, 7)
        values = []
        for contrasting in (ours, theirs):
            contrasting.zero_grad()
            value = contrasting(*features, rows, contrast).mean()
            value.backward()
            values.append(value.detach())
        torch.testing.assert_close(*values)
        torch.testing.assert_close(
            ours.embed_student.weight.grad, theirs.embed_student.linear.weight.grad
        )
    torch.testing.assert_close(ours.memory_student, theirs.memory_student)


SMALL = "--rounds 1 --steps 3 --skip 1 --threads 1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            "limit.py --pairs resnet14:resnet8 --batch 2 --rounds 1",
            ["limit: ", "resnet14 ", "resnet8 "],
        ),
        ("overhead.py --rounds 2 --epochs 2 --classes 5 --images 1600", ["all ", "tllm, cka "]),
        (
            "stored_teacher.py --pair resnet14:resnet8 --images 80 --batch 16 --trials 3 "
            "--rounds 1",
            ["without ", "with ", "times as fast ", "a batch in "],
        ),
        (
            "streaming.py --models shufflenet_v2_x0_5 --images 8 --epochs 2 --size 32",
            ["shufflenet_v2_x0_5, 0 readers", "shufflenet_v2_x0_5, 2 readers"],
        ),
        (
            f"growth.py --pair resnet8:resnet8 --batches 2 4 --classes 3 4 --taps 1 2 {SMALL}",
            ["2 images ", "4 images ", "3 classes ", "2 taps ", "1x1 ", "1x2 ", "2x1 "],
        ),
        ("crd_bank.py --banks 20000 30000 --rounds 1 --threads 1", ["20,000 ", "30,000 "]),
        ("crd_run.py --samples 6000 --classes 20 --negatives 256", ["6,000 images"]),
        (
            "memory.py --pair resnet8:resnet8 --methods ce crd --rounds 2 --steps 2 --batch 4 "
            "--samples 200 --negatives 32 --threads 1",
            ["ce ", "crd "],
        ),
        ("startup.py --rounds 1", ["import torch ", "kdzoo run digits.yaml (finished) "]),
        (
            "anatomy.py --pairs resnet8:resnet8 --methods fitnet dkd --steps 1 --skip 1 --batch 4 "
            "--samples 300 --threads 1",
            ["fitnet ", "dkd ", "resnet8 -> resnet8, a step beside "],
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_every_measurement_is_shown_and_kept(
    tmp_path: Path, warm: Warm, arguments: str, rows: list[str]
) -> None:
    script, *rest = arguments.split()
    kept = str(tmp_path / "kept")
    done = warm.run(str(BENCHMARKS / script), *rest, "--output", kept, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept.txt").read_text() == done.stdout
    for row in rows:
        assert any(line.startswith(row) for line in done.stdout.splitlines()), done.stdout
    shown = {line[:34].strip() for line in done.stdout.splitlines()}
    for table in json.loads((tmp_path / "kept.json").read_text())["tables"]:
        for label, cells in table["rows"]:
            assert label in shown
            for column, cell in zip(table["columns"], cells, strict=True):
                assert bool(cell["values"]) == any(map(str.isdigit, cell["shown"])), (label, column)
                if cell["values"] and re.search(" / |of the first|of importing", column):
                    assert len(cell["values"]) == len(cells[0]["values"])  # one a round


def test_the_suite_names_every_measurement(tmp_path: Path, warm: Warm) -> None:
    """Each script with a result is a part, but for what trains for accuracy or needs a GPU; and
    what is in the docs was made with its command."""
    done = warm.run(str(BENCHMARKS / "all.py"), "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = set(re.findall(r"python benchmarks/(\w+)\.py", done.stdout))
    keeping = {p.stem for p in BENCHMARKS.glob("*.py") if "    add_output(" in p.read_text()}
    assert named == keeping - {"cifar_classes", "gpu", "label_weight", "planted_signals"}
    for part, command in re.findall(r"^# (\w+): (python .*?) *$", done.stdout, re.MULTILINE):
        record = json.loads((BENCHMARKS / "results" / f"{part}.json").read_text())
        assert record["command"].partition(" --output ")[0] == command


@pytest.mark.slow
def test_the_gpus_benchmark_compares_the_preset(tmp_path: Path, warm: Warm) -> None:
    small = "--rounds 1 --steps 2 --skip 2 --batches 8 --samples 200 --workers 0 --trial 2"
    done = warm.run(
        *(str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--pair", "resnet8:resnet8"),
        *(*small.split(), "--epochs", "2", "--output", str(tmp_path / "gpu")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole, steps = json.loads((tmp_path / "gpu.json").read_text())["tables"]
    (_, (first, each, took, computed)) = whole["rows"][0]
    assert first["values"][0] + each["values"][0] < took["values"][0] < computed["values"][0]
    (_, cells) = steps["rows"][0]
    assert all(value > 0 for cell in cells for value in cell["values"])
    assert steps["columns"] == ["plain", "kdzoo", "preset", "kdzoo / plain", "preset / plain"]


@pytest.mark.slow
def test_the_literatures_table_is_trained_and_found_again(tmp_path: Path, warm: Warm) -> None:
    pictures = write_pictures(tmp_path / "pictures", size=(32, 32))
    arguments = "--pairs resnet56:resnet20 --methods ce dkd --epochs 1 --seeds 0 1 --device cpu"
    for time in (r"\d+\.\d", "-"):
        table = str(BENCHMARKS / "cifar100_table.py")
        done = warm.run(table, "--root", str(pictures), *arguments.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        for method in ("ce", "dkd"):
            row = rf"resnet56 -> resnet20 +{method} +\d+\.\d\d +\d+\.\d\d +{time}"
            assert re.search(row + "$", done.stdout, re.MULTILINE), done.stdout
        assert "published" not in done.stdout


def test_the_table_names_the_bundled_pairs(benchmarks: None) -> None:
    table = importlib.import_module("cifar100_table")
    assert set(table.PUBLISHED) == {(teacher, student) for teacher, student, _ in PAIRS}
    assert {len(values) for values in table.PUBLISHED.values()} == {len(table.METHODS)}


@pytest.mark.parametrize(
    ("given", "batch", "rates", "published"),
    [
        ("--compile --bf16", 64, (0.05, 0.01), True),
        ("--compile --bf16 --batch 256", 256, (0.2, 0.04), False),
        ("--compile --bf16 --epochs 24", 64, (0.05, 0.01), False),
    ],
)
def test_the_tables_presets_reach_the_spec(
    given: str,
    batch: int,
    rates: tuple[float, float],
    published: bool,
    benchmarks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = importlib.import_module("cifar100_table")
    pair = "wrn_40_2:ShuffleV1"  # the student has another rate than the teacher
    monkeypatch.setattr(sys, "argv", ["", "--root", "data", "--pairs", pair, *given.split()])
    args = table.arguments()
    spec = table.spec(*args.pairs, "kd", 0, args)
    for train, rate in zip((spec["teacher"]["train"], spec["train"]), rates, strict=True):
        assert train["optimizer"]["lr"] == pytest.approx(rate)
        assert (train["batch_size"], train["compile"], train["precision"]) == (batch, True, "bf16")
    head = next(table.rows(args))
    assert ("published" in head) is ("difference" in head) is published


@pytest.mark.slow
def test_planted_signals_finds_what_is_planted(tmp_path: Path, warm: Warm) -> None:
    done = warm.run(
        *(str(BENCHMARKS / "planted_signals.py"), "--seeds", "2"),
        *("--kinds", "margin", "wrong", "shuffled", "--signals", "baseline"),
        *("--output", str(tmp_path / "kept")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    harm, *kinds, margin, wrong = json.loads((tmp_path / "kept.json").read_text())["tables"]
    cost_of = {kind: cells[0]["values"] for kind, cells in harm["rows"]}
    assert min(cost_of["margin"] + cost_of["wrong"]) > 3
    assert max(cost_of["shuffled"]) < 0
    assert {len(values) for values in cost_of.values()} == {2}
    columns = ["planted, of 4", "hard for both, of 4", "others, of 12", "precision", "recall"]
    assert [table["columns"] for table in kinds] == [columns] * 3
    named = {
        table["title"].partition(":")[0]: [cell["shown"] for cell in cells]
        for table in kinds
        for _, cells in table["rows"]
    }
    found = ["4", "0", "0", "1.00", "1.00"]
    assert named == {"margin": found, "wrong": found, "shuffled": ["0", "0", "0", "-", "-"]}
    for table in (margin, wrong):
        remedies = {name: [cell["values"] for cell in cells] for name, cells in table["rows"]}
        cost = [-value for value in cost_of[table["title"].partition(":")[0]]]
        assert remedies["all"][0] == pytest.approx(cost)
        assert remedies["all"][2] == [0, 0]
        assert min(remedies["tllm"][0]) > max(cost)


@pytest.mark.slow
def test_the_study_of_classes_is_trained_and_shown_again(tmp_path: Path, warm: Warm) -> None:
    pictures = write_pictures(tmp_path / "pictures", train=20, size=(16, 16))
    study = (str(BENCHMARKS / "cifar_classes.py"), str(pictures), "--seeds", *map(str, range(5)))
    kept = ("--output", str(tmp_path / "kept"))
    chosen = ["all", "oracle"]
    done = warm.run(*study, "--policies", *chosen, "--at-once", "1", *kept, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    tables = json.loads((tmp_path / "kept.json").read_text())["tables"]
    table, evidence, validation, signals, _, null = tables
    assert len(signals["rows"]) == 6
    assert [label for label, _ in null["rows"]] == ["20 pairs"]
    # Of these the run is plain KD's where they would have stopped no class of it.
    replayed = {"tllm-residual", "tllm-agreement", "tllm-divergence"}
    trained = [label for label, _ in table["rows"] if label.split()[0] not in replayed]
    assert trained == [f"{name} (5 seeds)" for name in ("baseline", "bias", *chosen)]
    values = {
        label.split()[0]: [cell["values"] for cell in cells] for label, cells in table["rows"]
    }
    reports = [
        json.loads(p.read_text()) for p in tmp_path.glob("runs/cifar-classes/all-*/report.json")
    ]
    plain = [report["student"]["accuracy"] for report in reports if report["comparison"]]
    assert sorted(values["all"][0]) == pytest.approx(sorted(plain))
    assert values["all"][1] == [0] * 5
    same = [values[name] for name in replayed & values.keys()]
    assert same
    assert all(each[1] == [0] * len(each[0]) for each in same)
    verdicts = {label: [int(cell["shown"]) for cell in cells] for label, cells in evidence["rows"]}
    assert [name for name in verdicts if name not in replayed] == chosen
    assert {sum(counts[:3]) for counts in verdicts.values()} == {len(reports[0]["images"])}
    shown = [label for label, _ in validation["rows"] if label.split()[0] not in replayed]
    assert shown == [f"{name} (5 seeds)" for name in ("baseline", *chosen)]
    assert validation["rows"][1][1][1]["values"] == [0] * 5
    again = warm.run(*study, "--no-training", *kept, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "kept.json").read_text())["tables"] == tables
