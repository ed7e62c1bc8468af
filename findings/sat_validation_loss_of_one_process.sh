#!/usr/bin/env bash
# SwissArmyTransformer 0.4.12: the validation loss that several processes report is the first process's own, over its share of the data.
#
# Input: two processes, 8 validation samples with losses 1 to 8, batches of 2 a process, --strict-eval (all samples once); the forward step returns its
# loss, and the same number as a metric called loss, as CogVideoX's does. One would expect the mean over all samples, 4.5: the training loss is reduced
# over processes before it is reported. Metrics are gathered from all processes too, but the validation loss (and the perplexity made of it) is not, and
# both go to TensorBoard under one name:
#
#   process 0: samples 1 2 5 6 mean 3.5
#   process 1: samples 3 4 7 8 mean 5.5
#   Train/valid_loss at step 1: 3.5, then 4.5
#
# On 8 GPUs this loss is that of an eighth of the validation data, though all of it was computed. Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip torch==2.13.0 numpy==2.2.6 setuptools==80.9.0 wheel
pip --no-build-isolation SwissArmyTransformer==0.4.12 deepspeed==0.19.8 scipy requests wandb # the last three it imports without asking for them
cat >"$work/evaluate.py" <<'PYTHON'
import argparse
import sys
import types

from torch import distributed, nn

without_triton = types.ModuleType("sat.model.position_embedding.triton_rotary_embeddings")  # a GPU's, not used here
without_triton.FastRotaryEmbedding = None
sys.modules[without_triton.__name__] = without_triton
from sat import mpu
from sat.data_utils import make_loaders
from sat.training.deepspeed_training import evaluate_and_print_results
from sat.training.utils import Timers


class Writer(list):
    """Takes what would go to TensorBoard."""

    def add_scalar(self, name, value, step):
        self.append((name, step, round(float(value), 3)))


distributed.init_process_group("gloo")
mpu.initialize_model_parallel(1)
data = {"train_data": None, "valid_data": ["samples"], "test_data": None, "train_data_weights": None, "split": "1"}
batches = {"batch_size": 2, "eval_batch_size": 2, "batch_from_same_dataset": False, "strict_eval": True}
other = {"iterable_dataset_eval": False, "epochs": None, "num_workers": 0, "prefetch_factor": None, "wandb": False}
parallel = {"world_size": 2, "model_parallel_size": 1, "deepspeed": True, "deepspeed_activation_checkpointing": False}
arguments = argparse.Namespace(**data, **batches, **other, **parallel)
_, loader, _ = make_loaders(arguments, lambda path, args: [float(loss) for loss in range(1, 9)])
mine = []


def forward_step(batches, model, args, timers):
    losses = model(next(batches))
    mine.extend(losses.tolist())
    loss = losses.float().mean()
    return loss, {"loss": loss}


writer = Writer()
hooks = {"forward_step_eval": forward_step, "handle_metrics": None}
call = {"step": 1, "split": "val", "summary_writer": writer, "hooks": hooks}
evaluate_and_print_results("iteration 1", iter(loader), nn.Identity(), len(loader), arguments, Timers(), False, **call)
shares = [None, None]
distributed.all_gather_object(shares, mine)
if distributed.get_rank() == 0:
    for rank, share in enumerate(shares):
        mean = sum(share) / len(share)
        print(f"process {rank}: samples", *(f"{loss:.0f}" for loss in share), f"mean {mean}", flush=True)
    losses = [value for name, step, value in writer if (name, step) == ("Train/valid_loss", 1)]
    print("Train/valid_loss at step 1:", ", then ".join(map(str, losses)), flush=True)
    sys.exit(int(losses != [3.5, 4.5]))
PYTHON
cd "$work"
run=(-m torch.distributed.run --standalone --nproc_per_node=2 evaluate.py)
DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore "${run[@]}" 2>"$work/log" || { tail -n 5 "$work/log" >&2; exit 1; }
