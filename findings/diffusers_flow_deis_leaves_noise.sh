#!/usr/bin/env bash
# diffusers 0.42.1: DEISMultistepScheduler and SASolverScheduler end flow matching with noise in the sample; UniPC and DPM-Solver, set alike, do not.
#
# Input: use_flow_sigmas=True, flow_shift=3, prediction_type="flow_prediction", and a model that is exact, for data that are 2 everywhere. One would expect
# every sampler to end at the data, as those do that let sigma fall to 0 at last (also FlowMatchEulerDiscreteScheduler). These two repeat their last
# sigma instead, so that the last step does nothing, and have no final_sigmas_type to change it. What is left of the noise after
#
#                                5 steps  20 steps  50 steps
#   UniPCMultistepScheduler      0.000    0.000     0.000
#   DPMSolverMultistepScheduler  0.000    0.000     0.000
#   DEISMultistepScheduler       0.426    0.135     0.057
#   SASolverScheduler            0.434    0.136     0.059
#
# (About; SASolver draws noise of its own.) Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import diffusers
import torch

flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
changed = False
print(f"{'':28} 5 steps  20 steps  50 steps")
for name, clean in (
    ("UniPCMultistepScheduler", True),
    ("DPMSolverMultistepScheduler", True),
    ("DEISMultistepScheduler", False),
    ("SASolverScheduler", False),
):
    left = []
    for steps in (5, 20, 50):
        scheduler = getattr(diffusers, name)(**flow)
        scheduler.set_timesteps(steps)
        sample = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        for index, timestep in enumerate(scheduler.timesteps):
            velocity = (sample - 2) / scheduler.sigmas[index]
            (sample,) = scheduler.step(velocity, timestep, sample, return_dict=False)
        left.append(sample.std().item())
    print(f"{name:28} {left[0]:.3f}    {left[1]:.3f}     {left[2]:.3f}")
    expected = [0, 0, 0] if clean else [0.43, 0.136, 0.058]
    changed |= any(abs(a - b) > 0.03 * (not clean) + 1e-3 for a, b in zip(left, expected))
sys.exit(int(changed))
PYTHON
