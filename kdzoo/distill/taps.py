"""Reads features out of a network while it runs, and refuses taps that would lie."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.distill.network import Network, undisturbed
from kdzoo.errors import SpecError, did_you_mean
from kdzoo.extend.calling import calling
from kdzoo.extend.contracts import Layer, Layers, Outputs, Shapes

__all__ = ["Tapped"]


class _Tap:
    """A forward hook on one module. It keeps what passes only while ``listening``."""

    def __init__(self, name: str) -> None:
        self.name = name  # for errors
        self.listening = False
        self.clone = False  # a later in-place operation overwrites the output
        self.fired = 0
        self.value: Any = None
        self.version = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self.listening:
            return
        self.fired += 1
        self.value = output.clone() if self.clone else output
        if isinstance(output, Tensor):
            self.version = self.value._version

    def forget(self) -> None:
        self.listening, self.value, self.fired = False, None, 0


class Tapped:
    """A network and the layers of it that are read.

    Not a module: the network stays the caller's, and its state dict as it was.

    Args:
        role: "teacher" or "student", for errors.
        network: what is run.
        layers: the names that its model declares.
        wanted: the layers to read, stage numbers or module paths, and for whom, for errors.
        example: (B, channels, height, width), a few images to try the taps on.

    Raises:
        SpecError: a layer does not exist, does not give one tensor, or does not run exactly once.
    """

    def __init__(
        self,
        role: str,
        network: nn.Module,
        layers: Layers,
        wanted: Mapping[Layer, str],
        example: Tensor,
    ) -> None:
        self.role = role
        self.network = network
        self._taps: dict[Layer, _Tap] = {}
        modules = _modules(network)
        for layer, reader in wanted.items():
            tap = self._taps[layer] = _Tap(f'{reader}: layer "{layer}" of the {role}')
            with calling(reader):
                path = self._path(layer, layers, modules)
            modules[path].register_forward_hook(tap)
        self.shapes = self._probe(example)

    def __call__(self, inputs: Tensor) -> Outputs:
        """Run the network; only the wanted features are kept."""
        with self._listening():
            logits = self.network(inputs)
            for tap in self._taps.values():
                self._check(tap)
            features = {layer: tap.value for layer, tap in self._taps.items()}
        return Outputs(logits, features)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """What passes the taps is theirs in here, and nothing is kept afterwards."""
        for tap in self._taps.values():
            tap.listening = True
        try:
            yield
        finally:
            for tap in self._taps.values():
                tap.forget()

    def _path(self, layer: Layer, layers: Layers, modules: Mapping[str, nn.Module]) -> str:
        if isinstance(layer, int):
            if not 0 <= layer < len(layers.stages):
                known = f"0 to {len(layers.stages) - 1}" if layers.stages else "none"
                raise SpecError(
                    f"the {self.role} has no stage {layer}; its model declares {known} "
                    "(a module path works too)"
                )
            declares = f", which its model declares as stage {layer}"
            return self._existing(layers.stages[layer], modules, declares)
        declared = {"penultimate": layers.penultimate, "head": layers.head}
        path = declared.get(layer)
        if path:
            return self._existing(path, modules, f', which its model declares as "{layer}"')
        if layer in declared and layer not in modules:
            raise SpecError(
                f'the {self.role}\'s model declares no "{layer}" layer; declare it with '
                "kdzoo.Layers, or where a loss reads it, name a module path in its `layers`"
            )
        return self._existing(layer, modules)

    def _existing(self, path: str, modules: Mapping[str, nn.Module], declared: str = "") -> str:
        """The path, if there is a module."""
        if path in modules:
            return path
        inside = path.removeprefix("model.")
        if isinstance(self.network, Network) and inside in modules:
            near = f'; inside kdzoo.Network it is "{inside}"'
        else:
            near = did_you_mean(path, modules)
        raise SpecError(f'the {self.role} has no layer "{path}"{declared}{near}')

    def _check(self, tap: _Tap) -> None:
        if tap.fired == 0:
            raise SpecError(f"{tap.name} does not run in a forward pass; tap one that does")
        if tap.fired > 1:
            raise SpecError(
                f"{tap.name} runs {tap.fired} times in a forward pass (a shared module), so its "
                "output is not one feature; tap a module around it that runs once"
            )
        if not isinstance(tap.value, Tensor):
            raise SpecError(f"{tap.name} gives {type(tap.value).__name__}, not one tensor")
        if torch.compiler.is_compiling():
            return  # in a graph nothing is overwritten
        if not tap.clone and tap.value._version != tap.version:
            # Only a network whose in-place operations change from call to call gets here.
            raise SpecError(f"{tap.name} is overwritten by a later in-place operation")

    def _probe(self, example: Tensor) -> Shapes:
        """Try the taps in both modes, leaving no trace in the network or in the random state."""
        floats = example.is_floating_point()
        kind = "" if floats else f" of {example.dtype} (most models take floats in [0, 1])"
        with undisturbed(self.network, example):
            for training in (True, False):
                self.network.train(training)
                with calling(f"the {self.role}, on images {tuple(example.shape)}{kind},"):
                    self._find_overwritten(example)
            outputs = self(example)
        logits = outputs.logits
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(example):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise SpecError(f"the {self.role} must answer logits (B, C), not {got}")
        features = {layer: tuple(value.shape[1:]) for layer, value in outputs.features.items()}
        return Shapes(logits=tuple(logits.shape[1:]), features=features)

    def _find_overwritten(self, example: Tensor) -> None:
        with self._listening():
            self.network(example)
            for tap in self._taps.values():
                if isinstance(tap.value, Tensor) and tap.value._version != tap.version:
                    tap.clone = True


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """All modules by path, those of a :class:`Network` by their path in its bare model."""
    model = network.model if isinstance(network, Network) else network
    return {path: module for path, module in model.named_modules() if path}
