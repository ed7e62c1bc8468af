"""The optimiser: torch's AdamW without what torch imports for its compiler."""

import subprocess
import sys

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from sat_ssvae.engine.optimization import AdamW

from .processes import unmeasured

STEP = """
import sys
import torch
from sat_ssvae.engine.optimization import OptimizerConfig, build_engine
size = {"max_steps": 3, "micro_batch_size": 1, "device": torch.device("cpu")}
engine = build_engine(torch.nn.Linear(2, 2), OptimizerConfig(lr=1), **size)
before = engine.module.weight.detach().clone()
for _ in range(2):
    engine.backward(engine(torch.ones(1, 2)).sum())
    engine.step()
assert not torch.equal(engine.module.weight, before)
engine.save_checkpoint(sys.argv[1])
engine.load_checkpoint(sys.argv[1])
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def trained(optimizer_class, frozen_after):
    """Parameters, moments and the optimiser's state after steps, a restart and a layer that joined."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(5, 4), torch.nn.Linear(4, 3)
    options = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
    optimizer = optimizer_class(first.parameters(), **options)
    schedule = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for step in range(6):
        if step == 2:
            state = optimizer.state_dict()
            optimizer = optimizer_class(first.parameters(), **options)
            optimizer.load_state_dict(state)
        if step == 4:
            optimizer.add_param_group({"params": second.parameters()})
        if step == frozen_after:
            first.weight.requires_grad_(False)
        second(first(torch.randn(8, 5))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return [*first.parameters(), *second.parameters()], optimizer.state_dict()


@pytest.mark.parametrize("frozen_after", [None, 3])
def test_steps_and_state_are_torchs(frozen_after):
    ours, state = trained(AdamW, frozen_after)
    theirs, expected = trained(torch.optim.AdamW, frozen_after)
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))
    assert str(state) == str(expected)


def test_a_step_and_a_checkpoint_do_not_import_the_compiler(tmp_path):
    command = [sys.executable, "-c", STEP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=unmeasured())
    assert done.stdout.splitlines()[-1] == "[]"
