"""Networks and their weights: built from a spec's entry, saved, loaded, and refused when wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from kdzoo.distill.network import Network
from kdzoo.errors import CheckpointError
from kdzoo.extend.bases import ModelSource
from kdzoo.extend.calling import calling
from kdzoo.extend.contracts import Layers
from kdzoo.extend.registry import registry
from kdzoo.training.checkpoint import load_tensors, not_a_checkpoint
from kdzoo.training.directory import RunDirectory
from kdzoo.training.hashed_file import pack, read_about, unpack
from kdzoo.words import few

__all__ = ["NetworkRecipe", "load_weights", "read_weights"]


class NetworkRecipe:
    """All that is needed to build a network but its weights; plain data.

    Args:
        use: the architecture's name.
        params: its params.
        input_shape: (channels, height, width).
        classes: the C class names.
        mean: each channel's mean, for the input normalization.
        std: each channel's standard deviation.
    """

    def __init__(
        self,
        use: str,
        params: Mapping[str, Any],
        input_shape: Sequence[int],
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.use = use
        self.params = dict(params)
        channels, height, width = input_shape
        self.input_shape = (channels, height, width)
        self.classes = tuple(classes)
        self.mean = tuple(mean)
        self.std = tuple(std)

    def build(self, seed: int, *, weights_follow: bool = False) -> tuple[Network, Layers]:
        """The network with fresh weights, and its layer names. The random state is left as it was.

        Args:
            seed: of the weights.
            weights_follow: whether all of them will be loaded.

        Raises:
            SpecError: no such architecture, or it cannot take these images and classes.
        """
        source: ModelSource = registry().make(ModelSource.kind, self.use, self.params)
        source.weights_follow = weights_follow
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with calling(f'model "{self.use}"'):
                model = source.build(self.input_shape, len(self.classes))
                if not isinstance(model, nn.Module):
                    raise TypeError(f"build() answered {type(model).__name__}, not a module")
                if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
                    with torch.no_grad():  # lazy modules take their shape from a first batch
                        model.eval()(torch.zeros(2, *self.input_shape))
                    model.train()
                layers = source.layers()
        network = Network(model, self.mean, self.std)
        network.classes, network.input_shape = self.classes, self.input_shape
        return network, layers

    def save(self, network: Network, directory: RunDirectory) -> None:
        """Write the weights, with this recipe beside them, as ``student.safetensors``."""
        state = _without_aliases(network.model.state_dict())
        directory.write(directory.student, pack(state, recipe=vars(self)))

    @classmethod
    def of(cls, file: Path) -> NetworkRecipe | None:
        """The recipe beside the weights in a file that :meth:`save` wrote; ``None`` in others."""
        if file.suffix != ".safetensors":
            return None
        with _reading(file):
            record = read_about(file)
            return None if record is None else cls(**record["recipe"])


def load_weights(model: nn.Module, file: Path, what: str) -> None:
    """Fill a bare model with the weights in a file, all of them and nothing else.

    Args:
        model: the model, as :meth:`kdzoo.ModelSource.build` made it.
        file: ``.safetensors``, or what ``torch.save`` wrote: a state dict, alone or under
            ``model``, ``state_dict`` or the only name that has one; of the model, or of a wrapper
            that puts something before all its names (``module.``, ``_orig_mod.``, ``net.``,
            ``student.``) and whose other entries are passed over.
        what: what the model is, for errors ("the teacher").

    Raises:
        CheckpointError: the file is damaged or belongs to another architecture or class count.
    """
    own = model.state_dict()
    state = _unwrapped(read_weights(file), own, file)
    aliases = set(own) - set(_without_aliases(own))
    problems = [
        *_differences("lacks", sorted(_needed(own) - set(state) - aliases)),
        *_differences("has, unknown to the model,", sorted(set(state) - set(own))),
        *_differences(
            "has in another shape",
            [
                f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
                for name in own
                if name in state and state[name].shape != own[name].shape
            ],
        ),
    ]
    if problems:
        raise CheckpointError(
            f"{file}: is not of the architecture or class count of {what}: it "
            + "; it ".join(problems)
        )
    model.load_state_dict(state, strict=False)  # all but aliases is there: checked above


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, as :func:`load_weights` takes it; a student's as it was written.

    Raises:
        CheckpointError: the file is damaged, or holds none.
    """
    if file.suffix != ".safetensors":
        return _state_dict_in(load_tensors(file), file)
    with _reading(file):
        return unpack(file)


def _state_dict_in(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict that a file is, or has under a usual name, or under the only name."""
    if isinstance(content, dict) and not _is_state_dict(content):
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), dict):
                return _state_dict_in(content[key], file)
        others = [key for key, value in content.items() if not isinstance(value, Tensor)]
        if len(others) < len(content) / 2:  # a state dict but for these
            said = few([str(key) for key in others])
            raise CheckpointError(
                f"{file}: is no state dict: beside tensors it has {said}; remove "
                f"{'it' if len(others) == 1 else 'them'}, and save it again"
            )
        found = {key: value for key, value in content.items() if _is_state_dict(value)}
        if len(found) > 1:
            names = ", ".join(map(str, found))
            raise CheckpointError(
                f"{file}: holds several state dicts ({names}); save the one that is meant alone"
            )
        content = next(iter(found.values()), None)
    if not _is_state_dict(content):
        raise CheckpointError(f"{file}: holds no state dict (names and tensors)")
    state: dict[str, Tensor] = content
    return state


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _unwrapped(
    state: dict[str, Tensor], own: Mapping[str, Tensor], file: Path
) -> dict[str, Tensor]:
    """The model's own entries by its own names, out of those of whatever wraps it."""
    names = [name for name in _without_aliases(own) if name in _needed(own)]
    if not names or state.keys() >= set(names):
        return state
    ends = f".{names[0]}"
    prefixes = sorted(key.removesuffix(ends) + "." for key in state if key.endswith(ends))
    fitting = [p for p in prefixes if all(p + name in state for name in names)]
    # A distiller holds a teacher beside its student, which may have the same names.
    likely = [p for p in fitting or prefixes if "teacher" not in p.split(".")]
    if fitting and len(likely) > 1:
        raise CheckpointError(
            f"{file}: holds several networks of this architecture ({', '.join(likely)}); save "
            "the one that is meant alone"
        )
    # If none fits, the error that follows is about the one that has the most of the names.
    counts = {p: sum(p + name in state for name in names) for p in ("", *likely)}
    prefix = max(counts, key=counts.__getitem__)
    if not counts[prefix]:
        prefix = _common_prefix(state)
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def _needed(own: Mapping[str, Tensor]) -> set[str]:
    """The entries that a file must have: torch before 0.4.1 did not count batches, and only a norm
    without momentum looks at the count."""
    return {name for name in own if not name.endswith("num_batches_tracked")}


def _common_prefix(names: Iterable[str]) -> str:
    common = os.path.commonprefix(list(names))  # noqa: RUF071 of characters, as it is wanted
    return common[: common.rfind(".") + 1]


def _without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights only once, as safetensors wants them."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor.contiguous()
    return kept


def _differences(what: str, names: list[str]) -> list[str]:
    return [f"{what} {few(names)}"] if names else []


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a CheckpointError."""
    try:
        yield
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = not_a_checkpoint(file) or f"cannot be read: {error}"
        remedy = "" if isinstance(error, OSError) else _remedy(RunDirectory(file.parent), file)
        raise CheckpointError(f"{file}: {reason}{remedy}") from error


def _remedy(run: RunDirectory, file: Path) -> str:
    """What to do about a damaged file, if it is a run's student."""
    if file != run.student or not run.spec.exists():
        return ""
    way = f"writes it again out of {run.checkpoint.name}"
    return f"; remove it, and `kdzoo run` {way if run.checkpoint.exists() else 'trains it again'}"
