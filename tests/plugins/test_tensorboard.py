"""What a person sees in TensorBoard, read back from a real server."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kdzoo_plugins.observers.tensorboard import heat_map
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard_server import tensorboard

import kdzoo
from kdzoo.training.loop import Trainer


@pytest.fixture(params=["true", "false"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Callable[..., Any]]]:
    """A TensorBoard with its fast reader and one without: they treat restarts differently."""
    runs = tmp_path_factory.mktemp("runs")
    with tensorboard(runs, request.param) as get:
        yield runs, get


def wait_for(answer: Callable[[], Any], ready: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 60
    while True:
        try:
            got = answer()
        except OSError:
            got = None
        if got is not None and ready(got):
            return got
        assert time.monotonic() < deadline, got
        time.sleep(0.3)


def test_a_run_read_back_over_http(
    served: tuple[Path, Callable[..., Any]], tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, get = served
    tiny["observers"] = ["jsonl", "tensorboard"]
    original = Trainer._epoch

    def cut(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.distiller.teacher is not None and self.epoch == 2:
            raise KeyboardInterrupt  # after steps that were logged and will be done again

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            kdzoo.run(tiny, runs=runs)
    run = kdzoo.run(tiny, runs=runs)
    name = run.directory.name
    # In the order of their names, or TensorBoard never reads the one that goes on.
    seconds = [file.name.split(".")[3] for file in run.directory.glob("events.out.tfevents.*")]
    assert len(set(seconds)) == len(seconds) == 2
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").open()]
    tags = wait_for(
        lambda: get("data/plugin/scalars/tags").get(name),
        lambda found: "accuracy/validation" in found,
    )
    assert set(tags) == {
        "loss/total",
        "loss/ce",
        "loss/kd",
        "lr",
        "accuracy/train",
        "accuracy/teacher",
        "accuracy/validation",
        "agreement",
        "policy/untaught",
        "loader/share",
    }
    shares = wait_for(
        lambda: get("data/plugin/scalars/scalars", run=name, tag="loader/share"),
        lambda found: len(found) == tiny["train"]["epochs"],
    )
    assert all(0 < share < 1 for _, _, share in shares)
    assert not any("loader/share" in line for line in lines)  # a clock's: never the same again
    for tag in set(tags) - {"loader/share"}:
        wanted = [
            (line["step"], len(line["untaught"]) if tag == "policy/untaught" else line[tag])
            for line in lines
            if tag in line or (tag == "policy/untaught" and "epoch" in line)
        ]
        points = wait_for(
            lambda tag=tag: get("data/plugin/scalars/scalars", run=name, tag=tag),
            lambda found, wanted=wanted: len(found) == len(wanted),
        )
        # Each step once, although some were done twice: with the numbers of metrics.jsonl.
        assert [point[1] for point in points] == [step for step, _ in wanted]
        values = [value for _, value in wanted]
        np.testing.assert_allclose([point[2] for point in points], values, rtol=1e-6)
    texts = get("data/plugin/text/tags")[name]
    assert {tag.removesuffix("/text_summary") for tag in texts} == {"spec", "policy/untaught"}
    spec = get("data/plugin/text/text", run=name, tag="spec/text_summary")[0]["text"]
    assert "temperature: 4.0" in spec
    untaught = get("data/plugin/text/text", run=name, tag="policy/untaught/text_summary")
    said = re.sub("<[^>]*>", "", untaught[-1]["text"]).strip()
    assert said == (", ".join(run.report.untaught) or "none")
    images = get("data/plugin/images/tags")[name]
    assert set(images) == {
        "classes/student",
        "classes/teacher",
        "classes/agreement",
        "classes/divergence",
        "classes/student, validation",
        "classes/gap to baseline, validation",
        "classes/state",
        "classes/taught",
        "classes/gap to baseline",
    }
    (last, *_) = get("data/plugin/images/images", run=name, tag="classes/student", sample=0)[-1:]
    query = dict(urllib.parse.parse_qsl(last["query"]))
    picture = Image.open(io.BytesIO(get("data/plugin/images/individualImage", **query)))
    assert picture.format == "PNG"
    assert picture.height == 12 * 10


def test_a_heat_map_has_a_row_a_class_and_a_column_an_epoch() -> None:
    values = np.array([[0.0, 0.5, 1.0], [1.0, np.nan, 0.0]])
    picture = heat_map(values, ("a", "b", "c"), epochs=4, low=0, high=1)
    cells = picture[6::12, -48:, :][:, 6::12]
    assert cells.shape == (3, 4, 3)
    white, red = cells[0, 0], cells[2, 0]
    assert (white > 240).all()
    assert red[0] > 150
    assert red[2] < 60
    assert (cells[1, 1] == 128).all()
    assert (cells[:, 2:] == 0).all()
    around = heat_map(np.array([[-0.5, 0.0, 0.5]]), ("a", "b", "c"), 1, -0.5, 0.5)[6::12, -6]
    assert around[0][2] > around[0][0]
    assert (around[1] > 240).all()
    assert around[2][0] > around[2][2]


def test_heat_maps_of_a_long_run_are_drawn_twenty_times(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["train"]["epochs"] = 45
    tiny["observers"] = ["tensorboard"]
    run = kdzoo.run(tiny, runs=tmp_path)
    events = EventAccumulator(str(run.directory), {"images": 0}).Reload()
    steps = [image.step for image in events.Images("classes/student")]
    last = events.Scalars("accuracy/train")[-1].step
    assert 10 < len(steps) <= 20
    assert steps[-1] == last
