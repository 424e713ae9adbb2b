"""TensorBoard's HParams tab: one session a trial, beside the curves of the trials' runs."""

from __future__ import annotations

import io
from pathlib import Path

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.metadata import (
    NULL_TENSOR,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    create_summary_metadata,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from kdzoo.training.directory import RunDirectory
from kdzoo.tuning.trials import values_of

__all__ = ["write_hparams"]


def write_hparams(directory: Path, study: Study) -> None:
    """Write what TensorBoard is to show of the trials that are through, a file each, unless it is
    there. Nobody else may be doing so.

    No record says which params there are: TensorBoard would read that of one study only, and would
    show no other's. Without one it gathers them from the trials.

    Args:
        directory: the study's.
        study: Optuna's.
    """
    for trial in study.get_trials(deepcopy=False):
        place = RunDirectory(directory / f"trial-{trial.number:03d}")
        if not trial.state.is_finished() or any(place.path.glob("events.*")):
            continue
        place.path.mkdir(parents=True, exist_ok=True)
        assert trial.datetime_complete is not None
        end = trial.datetime_complete.timestamp()
        place.write(
            place.path / f"events.out.tfevents.{int(end)}.trial", _events(study, trial, end)
        )


def _events(study: Study, trial: FrozenTrial, end: float) -> bytes:
    start = SessionStartInfo(
        start_time_secs=trial.datetime_start.timestamp() if trial.datetime_start else end
    )
    shown = {**trial.params, "pruned": "yes" if trial.state == TrialState.PRUNED else "no"}
    for name, value in shown.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = str(value)
    failed = trial.state == TrialState.FAIL
    finish = SessionEndInfo(status=STATUS_FAILURE if failed else STATUS_SUCCESS, end_time_secs=end)
    runs = ", ".join(trial.user_attrs.get("runs", ())) or "none"
    parts = [
        _session(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        *(
            Summary(value=[Summary.Value(tag=f"objective/{name}", simple_value=value)])
            for name, value in values_of(study, trial).items()
        ),
        text("runs", runs),  # type: ignore[no-untyped-call]
        _session(SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=finish)),
    ]
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(wall_time=end, file_version="brain.Event:2").SerializeToString())
    for part in parts:
        writer.write(Event(wall_time=end, step=0, summary=part).SerializeToString())
    return stream.getvalue()


def _session(tag: str, data: HParamsPluginData) -> Summary:
    value = Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)
    return Summary(value=[value])
