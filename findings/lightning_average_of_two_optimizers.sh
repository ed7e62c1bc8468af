#!/usr/bin/env bash
# lightning 2.6.6: with two optimisers and update_every_n_steps=10, EMAWeightAveraging never averages, and training ends with the initial weights.
#
# Input: 1000 batches; the autoencoder's only weight is the share of training that is done, and the second optimiser is its discriminator's, as in the
# training of an adversarial autoencoder. One would expect an average every 10 batches, or, as Lightning counts the steps of both optimisers, every 5.
# But the callback looks after a batch, when two steps are done, at the index of the last one, which counts from 0: 1, 3, 5, ..., never a multiple of an
# even number. Validation, checkpoints and, when training ends, the model itself get the average's weights, which are those from before training:
#
#   update_every_n_steps                 1      2      5      10
#   one optimiser    updates             1000   500    200    100
#                    weight at the end   0.991  0.981  0.951  0.901
#   two optimisers   updates             1000   0      200    0
#                    weight at the end   0.991  0.000  0.953  0.000
#
# No warning says so. (Training itself is the same in all of them: the weight reaches 1.) Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 lightning==2.6.6
cd "$work"
"$work/venv/bin/python" -W ignore - 2>"$work/log" <<'PYTHON' || { tail -n 5 "$work/log" >&2; exit 1; }
import logging
import sys

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
BATCHES = 1000
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Training(lightning.LightningModule):
    """Each batch adds 1 / BATCHES to the weight: its gradient is -1."""

    def __init__(self, optimisers):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.discriminator = torch.nn.Linear(1, 1)
        self.count = optimisers

    def configure_optimizers(self):
        autoencoder = torch.optim.SGD([self.weight], lr=1 / BATCHES)
        discriminator = torch.optim.SGD(self.discriminator.parameters(), lr=0.01)
        return [autoencoder, discriminator][: self.count]

    def training_step(self, batch, index):
        optimisers = self.optimizers()
        losses = (-self.weight, self.discriminator(batch).square().mean())
        for optimiser, loss in zip([optimisers] if self.count == 1 else optimisers, losses):
            optimiser.zero_grad()
            self.manual_backward(loss)
            optimiser.step()
        self.trained = self.weight.item()


def train(optimisers, every):
    """Updates of the average, the weight just before training ends, and the weight that the trained model has."""
    model, average = Training(optimisers), EMAWeightAveraging(decay=0.9, update_every_n_steps=every)
    loader = torch.utils.data.DataLoader(torch.randn(BATCHES, 1))
    lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, callbacks=[average], **QUIET).fit(model, loader)
    return int(average._average_model.n_averaged), model.trained, model.weight.item()


intervals = (1, 2, 5, 10)
print(f"{'update_every_n_steps':36}", *(f"{every:<6}" for every in intervals))
found = {}
for optimisers, name in ((1, "one optimiser"), (2, "two optimisers")):
    updates, trained, ends = zip(*(train(optimisers, every) for every in intervals))
    print(f"{name:16} {'updates':19}", *(f"{count:<6}" for count in updates))
    print(f"{'':16} {'weight at the end':19}", *(f"{end:<6.3f}" for end in ends), flush=True)
    found[optimisers] = (updates, [round(end, 3) for end in ends], [round(value, 3) for value in trained])
right = found[1] == ((1000, 500, 200, 100), [0.991, 0.981, 0.951, 0.901], [1.0] * 4)
wrong = found[2] == ((1000, 0, 200, 0), [0.991, 0.0, 0.953, 0.0], [1.0] * 4)
sys.exit(int(not (right and wrong)))
PYTHON
