"""Every bundled component is held to what anybody's is, by the same kit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import earlier_run
from pictures import write_mnist, write_pictures

from kdzoo.extend.hookspecs import HOOKS
from kdzoo.extend.registry import BUNDLED, registry
from kdzoo.testing import conformance


def folders(folder: Path) -> dict[str, Any]:
    return {"root": str(write_pictures(folder / "pictures")), "size": 12}


def mnist(folder: Path) -> dict[str, Any]:
    write_mnist(folder / "data")
    return {"dataset": "MNIST", "root": str(folder / "data")}


def earlier(folder: Path) -> dict[str, Any]:
    gap = np.where(np.arange(10) == 2, -0.1, 0.0)
    return {"runs": [earlier_run(folder / "run", gap, seed=1)]}


MAP, LARGER, SMALLER = (6, 8, 8), (6, 16, 16), (6, 3, 3)
SHAPES: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "identity": [(MAP, MAP), ((7,), (7,))],
    "linear": [((5,), (9,)), ((16, 5), (16, 9))],
    "pool": [(LARGER, MAP), (MAP, SMALLER), ((6, 9, 5), (6, 2, 5))],
    "conv1x1": [(MAP, (9, 8, 8)), (LARGER, (3, 8, 8)), (MAP, (4, 3, 3))],
    "regressor": [
        (MAP, (9, 8, 8)),
        (MAP, (9, 4, 4)),
        (MAP, (9, 16, 16)),
        (MAP, (9, 3, 3)),
        ((6, 9, 5), (4, 2, 5)),
    ],
    "tokens": [
        ((17, 6), (9, 4, 4)),
        ((16, 6), (9, 8, 8)),
        ((65, 6), (9, 4, 4)),
        (MAP, (17, 9)),
        (MAP, (65, 9)),
        (MAP, (145, 9)),
        ((17, 6), (65, 9)),
        ((66, 6), (17, 9)),
    ],
}
FOUND = [
    (base.kind, name)
    for base in HOOKS.values()
    for name in registry().names(base.kind)
    if registry().owner(registry().find(base.kind, name)).distribution == BUNDLED
]
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    # Each of the 24 others once; by default, of so few images, some of them many times.
    ("loss", "crd"): {"entry": {"negatives": 24}},
    ("policy", "fixed"): {"entry": {"classes": ["b", "j"]}},
    ("policy", "oracle"): {"entry": earlier},
    ("model", "torchvision"): {"entry": {"model": "resnet18"}, "input_shape": (3, 32, 32)},
    ("model", "timm"): {"entry": {"model": "test_resnet"}, "input_shape": (3, 32, 32)},
    ("dataset", "image-folder"): {"entry": folders},
    ("dataset", "torchvision"): {"entry": mnist},
    **{("adapter", name): {"shapes": shapes} for name, shapes in SHAPES.items()},
}

# Deeper than a sibling, and else the same.
DEEPER = {
    *("resnet44", "resnet56", "resnet110", "resnet32x4"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "wrn_40_1", "wrn_40_2"),
}


def suite(kind: str, name: str) -> type:
    tests = type(f"Test {kind} {name}", (), {"__module__": __name__})
    small = {"input_shape": (3, 8, 8)} if kind == "model" else {}
    settings = small | SETTINGS.get((kind, name), {})
    tests = conformance(registry().find(kind, name), **settings)(tests)
    if name in DEEPER:
        pytest.mark.skip(reason="a sibling is compiled")(tests.test_compiled)  # type: ignore[attr-defined]
        tests = pytest.mark.slow(tests)
    return tests


TIMM = ("model", "timm")
MISSING = {TIMM} if find_spec("timm") is None else set()

for kind, name in FOUND:
    if (kind, name) not in MISSING:
        globals()[f"Test {kind} {name}"] = suite(kind, name)


@conformance(registry().find("loss", "crd"))
class TestCRDByDefault:
    pass


@conformance(registry().find("loss", "crd"), entry={"negatives": 12, "mode": "relax"})
class TestRelaxedCRD:
    pass


@pytest.mark.skipif(TIMM in MISSING, reason="pip install 'kdzoo[timm]'")
def test_timm_is_held_to_the_same() -> None:
    assert "Test model timm" in globals()


def test_nothing_bundled_is_left_out() -> None:
    assert len(FOUND) > 40
    assert set(SETTINGS) <= set(FOUND)
