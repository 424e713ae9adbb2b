"""The HParams tab, read back from a real TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard_server import tensorboard

import kdzoo


def test_the_tab_is_filled_in_the_one_logdir(tmp_path: Path, tiny: dict[str, Any]) -> None:
    spec = {
        **tiny,
        "data": {"use": "planted", "per_class": 60, "validation": 0.25},
        "policy": "all",
        "baseline": False,
        "observers": ["tensorboard"],
        "tune": {
            "space": {
                "train.optimizer.lr": {"choices": [0.05, 0.5, 1e30]},  # the last is pruned
                "train.schedule": {"choices": [None]},
            },
            "sampler": "grid",
            "trials": 3,
        },
    }
    done = kdzoo.tune(spec, runs=tmp_path)
    trials = done.study.get_trials()
    assert [trial.state.name for trial in trials].count("PRUNED") == 1
    with tensorboard(tmp_path) as ask:
        deadline = time.monotonic() + 60
        groups: list[dict[str, Any]] = []
        while len(groups) < len(trials) and time.monotonic() < deadline:
            experiment = ask("data/plugin/hparams/experiment", {"experimentName": ""})
            answer = ask(
                "data/plugin/hparams/session_groups",
                {
                    "startIndex": 0,
                    "sliceSize": 100,
                    "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_UNKNOWN"],
                    "colParams": [
                        {"metric": info["name"]} for info in experiment.get("metricInfos", ())
                    ],
                },
            )
            groups = answer.get("sessionGroups", [])
            time.sleep(0.2)
        curves = ask("data/plugin/scalars/tags")
    assert len(groups) == len(trials)
    for trial in trials:
        (group,) = (g for g in groups if g["name"].endswith(f"trial-{trial.number:03d}"))
        assert group["hparams"] == {
            **{k: "None" if v is None else v for k, v in trial.params.items()},
            "pruned": "yes" if trial.state.name == "PRUNED" else "no",
        }
        (session,) = group["sessions"]
        found = {
            m["name"]["tag"]: m["value"] for m in session["metricValues"] if "tag" in m["name"]
        }
        assert found.get("objective/accuracy") == (trial.value and pytest.approx(trial.value))
        # Its curves are in the same logdir, under the name that the session gives.
        (run,) = trial.user_attrs["runs"]
        assert trial.value is None or "accuracy/validation" in curves[run]
