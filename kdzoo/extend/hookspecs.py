"""The hooks: all that a plugin can be asked. Each takes nothing and returns a list of classes."""

from __future__ import annotations

import pluggy

from kdzoo.extend.bases import Adapter, ClassPolicy, DataSource, Loss, ModelSource, Observer

__all__ = ["API_VERSION", "HOOKS", "Hooks", "hookimpl"]

API_VERSION = 1
"""The version of the hooks and contracts. A plugin module may state the one it was written for
as ``KDZOO_API_VERSION = 1``; one that states a higher number is not loaded."""

hookspec = pluggy.HookspecMarker("kdzoo")
hookimpl = pluggy.HookimplMarker("kdzoo")


class Hooks:
    """What a plugin module may define, each function marked ``@kdzoo.hookimpl``."""

    @hookspec
    def kdzoo_losses(self) -> list[type[Loss]]:  # type: ignore[empty-body]
        """Losses."""

    @hookspec
    def kdzoo_adapters(self) -> list[type[Adapter]]:  # type: ignore[empty-body]
        """Feature adapters."""

    @hookspec
    def kdzoo_policies(self) -> list[type[ClassPolicy]]:  # type: ignore[empty-body]
        """Class policies."""

    @hookspec
    def kdzoo_models(self) -> list[type[ModelSource]]:  # type: ignore[empty-body]
        """Architectures."""

    @hookspec
    def kdzoo_datasets(self) -> list[type[DataSource]]:  # type: ignore[empty-body]
        """Image sets."""

    @hookspec
    def kdzoo_observers(self) -> list[type[Observer]]:  # type: ignore[empty-body]
        """Observers of a run."""


HOOKS = {
    "kdzoo_losses": Loss,
    "kdzoo_adapters": Adapter,
    "kdzoo_policies": ClassPolicy,
    "kdzoo_models": ModelSource,
    "kdzoo_datasets": DataSource,
    "kdzoo_observers": Observer,
}
