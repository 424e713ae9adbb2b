"""The models of timm."""

from __future__ import annotations

from typing import Any

from torch import nn

import kdzoo
from kdzoo_plugins.models._foreign import ENTRANCE, mark_entrance

__all__ = ["Timm"]


class Timm(kdzoo.ModelSource):
    """A model of timm. Its stages are those that timm itself declares.

    Where the data has another number of classes than the trained weights, the classifier is a new
    one, and the model must be trained before it can teach.
    """

    name = "timm"

    class Params(kdzoo.Params):
        """What can be set."""

        model: str = kdzoo.Field(
            description="Its name in timm, with a tag for certain weights or without: "
            "resnet50, resnet50.a1_in1k, ..."
        )
        pretrained: bool = kdzoo.Field(False, description="Bring trained weights.")

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """See :meth:`kdzoo.ModelSource.build`."""
        channels, *size = input_shape
        name = self.params.model
        config = self._config()
        if self.params.pretrained and channels != 3:
            raise kdzoo.SpecError(
                f"the weights of {name} are for images of 3 channels, and these have {channels}"
            )
        options: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
        if config.fixed_input_size:
            options["img_size"] = tuple(size)
        try:
            model: nn.Module = _timm().create_model(
                name, pretrained=self.params.pretrained and not self.weights_follow, **options
            )
        except (AssertionError, RuntimeError, ValueError) as error:  # how timm refuses
            raise kdzoo.SpecError(f"{name} cannot be built: {error}") from error
        paths = {path for path, _ in model.named_modules() if path}
        stages = tuple(info["module"] for info in getattr(model, "feature_info", ()))
        if not paths.issuperset(stages):  # one left out would change the numbers of the others
            stages = ()
        self._layers = kdzoo.Layers(stages)
        if config.classifier in paths:  # there may be none, or two
            mark_entrance(model.get_submodule(config.classifier))
            self._layers = kdzoo.Layers(
                stages, f"{config.classifier}.{ENTRANCE}", config.classifier
            )
        return model

    def layers(self) -> kdzoo.Layers:
        """See :meth:`kdzoo.ModelSource.layers`."""
        return self._layers

    def normalization(self) -> kdzoo.Normalization | None:
        """See :meth:`kdzoo.ModelSource.normalization`."""
        if not self.params.pretrained:
            return None
        config = self._config()
        return kdzoo.Normalization(tuple(config.mean), tuple(config.std))

    def pretrained(self) -> bool:
        """See :meth:`kdzoo.ModelSource.pretrained`."""
        return bool(self.params.pretrained)

    def _config(self) -> Any:
        """What timm knows of the model: where its classifier is, how its images are normalized."""
        timm = _timm()
        name = self.params.model
        plain = name.partition(".")[0]
        if not timm.is_model(plain):
            raise kdzoo.SpecError(
                f'timm has no model "{plain}"{kdzoo.did_you_mean(plain, timm.list_models())}'
            )
        try:
            return timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            known = timm.list_pretrained(plain)
            raise kdzoo.SpecError(
                f'timm has no weights "{name}"{kdzoo.did_you_mean(name, known)}'
            ) from error


def _timm() -> Any:
    """timm, imported when it is needed: it takes seconds, and need not be installed."""
    try:
        import timm
    except ImportError as error:
        raise kdzoo.SpecError(
            f"timm cannot be imported ({error}); install it: pip install 'kdzoo[timm]'"
        ) from error
    return timm


@kdzoo.hookimpl
def kdzoo_models() -> list[type[kdzoo.ModelSource]]:
    """See :mod:`kdzoo.extend.hookspecs`."""
    return [Timm]
