#!/usr/bin/env bash
# diffusers 0.42.1: FlowMatchEulerDiscreteScheduler(shift=3) and set_shift(3) give different schedules; the first shifts the end of it twice.
#
# Input: the scheduler alone, with the shift of Stable Diffusion 3. One would expect shift to mean the same both ways, and set_timesteps(1000), all
# of the 1000 steps of training, to give the timesteps that the object has from the start and that training takes its noise levels from.
# But the constructor keeps the shifted end as sigma_min; set_timesteps() spaces its steps down to there and shifts them again:
#
#                            last timesteps
#   shift=3                  8.95    5.98   2.99   (as constructed, for training)
#   shift=3, 1000 steps      14.82   11.88  8.93
#   shift=3, 20 steps        266.3   149.8  8.93
#   set_shift(3), 20 steps   262.7   145.2  2.99
#
# With shift=12 the last step is at 126 in place of 12 of 1000. (Sigmas that are passed to set_timesteps() are shifted once.) Exits 1 if the
# behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

from diffusers import FlowMatchEulerDiscreteScheduler


def last(text, scheduler, steps):
    if steps:
        scheduler.set_timesteps(steps)
    shown = scheduler.timesteps[-3:].tolist()
    print(f"{text:24}", *(f"{value:7.2f}" for value in shown))
    return round(shown[-1], 2)


def built(shift):
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def changed_later(shift):
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_shift(shift)
    return scheduler


found = [
    last("shift=3", built(3.0), None),
    last("shift=3, 1000 steps", built(3.0), 1000),
    last("shift=3, 20 steps", built(3.0), 20),
    last("set_shift(3), 20 steps", changed_later(3.0), 20),
    last("shift=12, 20 steps", built(12.0), 20),
    last("set_shift(12), 20 steps", changed_later(12.0), 20),
]
sys.exit(int(found != [2.99, 8.93, 8.93, 2.99, 125.98, 11.87]))
PYTHON
