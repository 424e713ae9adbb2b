"""What the published networks have in common."""

from __future__ import annotations

from torch import nn

__all__ = ["global_pool", "he"]


def global_pool() -> nn.Sequential:
    """(B, C, H, W) to (B, C), at any H and W."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def he(model: nn.Module) -> None:
    """Draw all convolutions from a normal distribution of variance 2 / fan-out, and clear their
    biases (He et al., Delving Deep into Rectifiers, 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
