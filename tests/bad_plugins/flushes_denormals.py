"""Bad: everybody's smallest numbers become 0."""

import torch

torch.set_flush_denormal(True)
