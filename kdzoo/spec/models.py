"""The spec's own keys. Only here does the engine name bundled components: as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdzoo.extend.bases import Adapter, ClassPolicy, DataSource, Loss, ModelSource, Observer

__all__ = [
    "KINDS",
    "NO_SETTING",
    "AdapterEntry",
    "DataEntry",
    "Entry",
    "LayersEntry",
    "LossEntry",
    "ModelEntry",
    "NormalizeEntry",
    "ObserverEntry",
    "PolicyEntry",
    "Spec",
    "Stage",
    "TeacherEntry",
    "TorchEntry",
    "Train",
    "settings_of",
    "without_source",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Entry(BaseModel):
    """A component by name, with its parameters flat beside the spec's own keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str = Field(description="The component's name.")

    @property
    def params(self) -> dict[str, Any]:
        """The component's parameters: all keys that are not the spec's own."""
        return dict(self.model_extra or {})


class AdapterEntry(Entry):
    """A feature adapter."""


class PolicyEntry(Entry):
    """A class policy."""


class ObserverEntry(Entry):
    """An observer of the runs."""


class TorchEntry(Entry):
    """An optimizer of torch.optim, or a schedule of torch.optim.lr_scheduler, by its own name."""


class DataEntry(Entry):
    """The images."""

    validation: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="The share of each class's training images that is kept for validation. 0: "
        "train on all of them, as published recipes do.",
    )
    split_seed: int = Field(0, description="Which images those are.")
    crop: int | None = Field(
        None,
        ge=0,
        description="Random crops up to so many pixels off centre; by default as the data says. "
        "Of images that do not fit into memory: any number but 0 for crops of random size.",
    )
    flip: bool | None = Field(None, description="Mirror at random; by default as the data says.")
    workers: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Processes that read images which do not fit into memory; by default one "
        "per core, up to 8. The images are the same with any number.",
    )


class Train(_Strict):
    """How long and with which optimizer a stage trains."""

    epochs: int = Field(ge=1, description="How often each training image is seen.")
    batch_size: int = Field(64, ge=2, description="Images per step, over all processes.")
    optimizer: TorchEntry = Field(
        TorchEntry.model_validate(
            {"use": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5.0e-4}
        ),
        description="One of torch.optim by name (sgd, adamw, ...), with its arguments.",
    )
    schedule: TorchEntry | None = Field(
        None,
        description="One of torch.optim.lr_scheduler by name without LR (multistep, "
        "cosineannealing, ...), with its arguments; stepped once per epoch. T_max is by default "
        "the stage's epochs. Without a schedule the rate is constant.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="What the networks compute in while they train; weights, losses, adapters and "
        "evaluation stay in single precision. bf16: bfloat16, faster on processors that have it.",
    )
    compile: bool = Field(
        False,
        description="Compile each step with torch.compile: faster steps, on a GPU above all, after "
        "a minute or more of compiling; equal but for rounding.",
    )


class LayersEntry(_Strict):
    """A student layer and the teacher layer it is compared with."""

    student: int | str = Field(
        description="The number of a network stage, penultimate, head, or a module path: blocks.7."
    )
    teacher: int | str = Field(
        description="The number of a network stage, penultimate, head, or a module path: blocks.7."
    )


class LossEntry(Entry):
    """One term of the total loss."""

    id: str = Field(
        "",  # spelt out as `use` before validation
        pattern=r"^[A-Za-z0-9_-]+$",
        description="The term's name, unique in its stage; by default its `use`.",
    )
    weight: float = Field(
        1.0,
        ge=0,
        description="The factor of the term in the total loss; by default as it was published. A "
        "label term takes the weight that the teacher's terms beside it were published with, 1 "
        "where these differ.",
    )
    warmup_epochs: int = Field(
        0,
        ge=0,
        description="The weight rises as min(epoch / warmup_epochs, 1), epochs from 1; by default "
        "as it was published.",
    )
    layers: tuple[LayersEntry, ...] | None = Field(
        None, description="The features compared, one pair or a list; by default the loss's own."
    )
    adapter: AdapterEntry | None = Field(
        None, description="Brings student features into the teacher's shape."
    )


class NormalizeEntry(_Strict):
    """How images are normalized for a model: (image - mean) / std, in units of [0, 1]."""

    mean: tuple[float, ...] = Field(description="Each channel's mean.")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="Each channel's standard deviation."
    )

    @model_validator(mode="after")
    def _as_many(self) -> NormalizeEntry:
        if len(self.mean) != len(self.std):
            raise ValueError(f"has {len(self.mean)} means and {len(self.std)} standard deviations")
        return self


class ModelEntry(Entry):
    """An architecture."""

    checkpoint: str | None = Field(
        None,
        description="A file of weights to start from, relative to the spec: .safetensors, or what "
        "torch.save wrote.",
    )
    normalize: NormalizeEntry | None = Field(
        None,
        description="How its images are normalized; by default as its weights say, or as the data "
        "says.",
    )


TEACHER_ORIGINS = (
    "say where its weights come from: `train` (train it here), `checkpoint` (a file), `run` "
    "(another spec), or trained weights of its library (`weights: DEFAULT` for torchvision, "
    "`pretrained: true` for timm)"
)


class TeacherEntry(ModelEntry):
    """The teacher: trained here (`train`), loaded (`checkpoint`), from another spec (`run`), or
    with the trained weights of its library (`use: torchvision`, `use: timm`)."""

    use: str = Field("", description="The architecture's name.")
    train: Train | None = Field(
        None, description="Train the teacher, in a run of its own, with a `train` of its own."
    )
    losses: tuple[LossEntry, ...] = Field(
        (LossEntry.model_validate({"use": "ce", "id": "ce"}),),
        description="What the teacher is trained with.",
    )
    seed: int | Literal["own"] | None = Field(
        None,
        description="The seed of its run; by default a stream of the spec's own seed, of the first "
        "where the spec has `seeds`. own: a teacher of its own for each of them.",
    )
    run: str | None = Field(
        None, description="Another spec, relative to this one: its student is the teacher."
    )
    epoch: int | None = Field(
        None, ge=1, description="With `run`: that student as it was after so many epochs."
    )
    check: bool = Field(
        True,
        description="Stop if a teacher with loaded weights is no better than chance, or worse than "
        "the baseline on the validation images, or than a student that starts from a checkpoint.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherEntry:
        if self.run is not None:
            if given := {*self.model_fields_set, *self.params} - {"run", "epoch"}:
                raise ValueError(
                    f"`run` takes the teacher whole out of another spec; remove {_listed(given)}"
                )
        elif self.epoch is not None:
            raise ValueError("`epoch` belongs to a teacher that comes out of another spec (`run`)")
        elif not self.use:
            raise ValueError("name its architecture with `use`, or another spec with `run`")
        elif self.train is not None and self.checkpoint is not None:
            raise ValueError("has two origins, `train` and `checkpoint`; remove one of the two")
        elif self.train is None:
            given = {key for key in ("losses", "seed") if key in self.model_fields_set}
            given -= {"seed"} if self.seed is None else set()
            if given:
                raise ValueError(f"is not trained here (no `train`); remove {_listed(given)}")
        return self


class Stage(_Strict):
    """A part of a run with its own losses and learning parameters."""

    train: Train
    losses: tuple[LossEntry, ...] = Field(
        (LossEntry.model_validate({"use": "ce", "id": "ce"}),),
        description="The terms of the total loss.",
    )
    policy: PolicyEntry = Field(PolicyEntry(use="all"), description="Which classes are taught.")
    learn: tuple[str, ...] = Field(
        ("student", "losses"),
        description="Which parameters learn: these, or parts of them (student.stem), but never "
        "what a model or a loss froze itself.",
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Stage:
        if not self.losses:
            raise ValueError("losses is empty: there is nothing to learn from")
        return self


class Spec(_Strict):
    """All that one run is made of."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="The first part of the run directory's name.",
    )
    seed: int = Field(0, ge=0, description="All random streams derive from it.")
    data_seed: int | None = Field(
        None, ge=0, description="The seed of the augmentation; by default the seed."
    )
    data: DataEntry = Field(description="The images.")
    teacher: TeacherEntry | None = Field(
        None, description="The network to learn from; leave it out for ordinary training."
    )
    student: ModelEntry = Field(description="The network that is trained.")
    baseline: bool = Field(
        False, description="Also train the same student without the teacher, to compare with."
    )
    stages: tuple[Stage, ...] = Field(
        description="The parts of the run. For a single one, its keys (train, losses, policy, "
        "learn) may stand at the top of the spec instead.",
    )
    stop_epoch: int | None = Field(
        None, ge=1, description="End after so many epochs, with the schedule of the whole run."
    )
    observers: tuple[ObserverEntry, ...] = Field(
        tuple(ObserverEntry(use=name) for name in ("progress", "tensorboard", "jsonl")),
        description="What shows a run and writes it down.",
    )
    log_every: int = Field(10, ge=1, description="Steps between two looks at the losses.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute.")
    store_gb: float | None = Field(
        None,
        ge=0,
        description="Gigabytes (10^9 bytes) that teachers' outputs may take in runs/.cache, so "
        "that runs which see the same views again need not compute them again; the student is the "
        "same, bit for bit. By default nothing is stored, but in `kdzoo tune` up to 4.",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; by default torch's choice."
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> Spec:
        if not self.stages:
            raise ValueError("stages is empty: there is nothing to do")
        return self

    @property
    def stage_epochs(self) -> tuple[int, ...]:
        """How many epochs each stage will be trained."""
        left = sum(stage.train.epochs for stage in self.stages)
        if self.stop_epoch is not None:
            left = min(left, self.stop_epoch)
        epochs: list[int] = []
        for stage in self.stages:
            epochs.append(min(stage.train.epochs, left))
            left -= epochs[-1]
        return tuple(epochs)

    @property
    def epochs(self) -> int:
        """How many epochs will be trained, over all stages."""
        return sum(self.stage_epochs)


NO_SETTING = frozenset(
    {
        "name",
        "observers",
        "log_every",
        "device",
        "threads",
        "store_gb",
        "data.workers",
        "train.compile",
    }
)
"""The keys that change no more of what is trained than its last digits, as ``--set`` names them.
``train`` is that of any stage, and of the teacher."""


def settings_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec, as plain data, without the keys in :data:`NO_SETTING`."""

    def kept(chapter: Mapping[str, Any], path: str) -> dict[str, Any]:
        return {key: item for key, item in chapter.items() if path + key not in NO_SETTING}

    def trained(part: Mapping[str, Any]) -> dict[str, Any]:
        return {**part, "train": kept(part["train"], "train.")} if part.get("train") else {**part}

    settings = trained(kept(spec, ""))
    settings["data"] = kept(spec["data"], "data.")
    if spec.get("teacher"):
        settings["teacher"] = trained(spec["teacher"])
    if spec.get("stages"):
        settings["stages"] = [trained(stage) for stage in spec["stages"]]
    return settings


def without_source(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's `data`, as plain data, without the params of its source: they say where images are,
    and not which."""
    return {key: data[key] for key in data.keys() & DataEntry.model_fields.keys()}


def _listed(keys: set[str]) -> str:
    return ", ".join(f"`{key}`" for key in sorted(keys))


KINDS: dict[type[Entry], str] = {
    AdapterEntry: Adapter.kind,
    DataEntry: DataSource.kind,
    LossEntry: Loss.kind,
    ModelEntry: ModelSource.kind,
    ObserverEntry: Observer.kind,
    PolicyEntry: ClassPolicy.kind,
    TeacherEntry: ModelSource.kind,
}
"""The kind of component that each class of entry names."""
