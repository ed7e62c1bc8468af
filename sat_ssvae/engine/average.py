"""Exponential moving average of weights: what is evaluated and kept, while the raw weights train on.

average = AveragedModel(model, multi_avg_fn=warmed_up_average(0.999))
"""

from collections.abc import Callable
from typing import Any

from torch.optim.swa_utils import get_ema_multi_avg_fn


def warmed_up_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average over about a tenth of the steps so far, until `decay` limits it.

    The initial weights would otherwise stay in it for 1 / (1 - decay) steps, most of a short training.
    """

    def update(averaged: Any, current: Any, num_averaged: Any) -> None:
        count = float(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, num_averaged)

    return update
