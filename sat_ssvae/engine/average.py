"""Exponential moving average of weights: what is evaluated and kept, while the raw weights train on.

average = Average(model, 0.999, device)
optimizer.step(); average.update()
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """An average over about a tenth of the steps so far, until `decay` limits it; the first step's weights start it.

    With the whole `decay` from the start, initial weights would stay in it for 1 / (1 - decay) steps, most of a short
    training. Not `torch.optim.swa_utils.AveragedModel`: that counts steps on the device and reads the count each step.

    No engine may have wrapped `source` yet: its hooks must not be copied.
    """

    def __init__(self, source: nn.Module, decay: float, device: torch.device) -> None:
        self._source, self.decay, self.steps = source, decay, 0
        self.module = copy.deepcopy(source).to(device).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self) -> None:
        """Add the source's weights after a step; buffers are copied."""
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        averaged, current = list(self.module.parameters()), list(self._source.parameters())
        get_ema_multi_avg_fn(keep)(averaged, current, self.steps)
        for mine, its in zip(self.module.buffers(), self._source.buffers(), strict=True):
            mine.copy_(its)
        self.steps += 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self.steps, "weights": self.module.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.steps = state["steps"]
        self.module.load_state_dict(state["weights"])
