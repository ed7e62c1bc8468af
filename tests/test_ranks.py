"""Two ranks: they skip together, they hold the same weights, ZeRO's stages agree, none goes on alone."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.training.trainer import TrainConfig, train

from .ranks import free_port, run_ranks, start_ranks
from .test_project import ROOT
from .test_stages import ADVERSARIAL
from .test_trainer import CPU, details, rows, settings

SCRIPT = """
import json, sys, threading, torch
import torch.distributed as dist
from pathlib import Path
from sat_ssvae import distributed
from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.engine import checkpoints
from sat_ssvae.training import trainer
from sat_ssvae.training.trainer import TrainConfig, train

CPU = torch.device("cpu")
distributed.initialize(CPU)
rank, (runs, folder) = distributed.rank(), sys.argv[1:]
original, critic_step = trainer.Objective.forward, trainer.critic_step

class Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)
    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")

for name, settings in json.loads(runs).items():
    calls, critics = [], []

    def one_rank_fails(self, video, generator, *critic):
        calls.append(1)
        losses = original(self, video, generator, *critic)
        total = losses.total
        if name.startswith("bad") and len(calls) == 2 and rank == 1:
            total = total * float("nan")
        if name.startswith("bad") and len(calls) == 4 and rank == 0:
            total = Overflow.apply(total)
        return losses._replace(total=total)

    def noting(*given):
        critics.append(critic_step(*given))
        return critics[-1]

    trainer.Objective.forward, trainer.critic_step = one_rank_fails, noting
    training = trainer.AutoencoderTrainer
    instances = []
    trainer.AutoencoderTrainer = lambda *arguments: instances.append(training(*arguments)) or instances[-1]
    train(parse_config(TrainConfig, settings), Path(folder) / name, CPU)
    trainer.AutoencoderTrainer = training
    mine = torch.cat([value.detach().flatten() for value in instances[0].objective.vae.state_dict().values()])
    others = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(others, mine)
    assert torch.equal(others[0], others[1]), name
    assert len(calls) == settings["max_steps"], (name, len(calls))
    objective = instances[0].objective
    mine = torch.stack([objective.applied_lcr_weight, objective.applied_adversarial_weight])
    dist.all_gather(others := [torch.empty_like(mine) for _ in range(2)], mine)
    assert torch.equal(others[0], others[1]) and (not name.startswith("gan") or mine[1] > 0), (name, others)
    if critics:
        last = critics[-1].detach()
        dist.all_gather(others := [torch.empty_like(last) for _ in range(2)], last)
        logged = json.loads((Path(folder) / name / "metrics.jsonl").read_text().splitlines()[-1])["critic"]
        assert others[0] != others[1] and abs(logged - sum(others) / 2) < 1e-6, (name, logged, others)

trainer.Objective.forward = original
if rank == 0:
    (Path(folder) / "bad0" / "done").unlink()
checkpoints.NEWS = 1.0
for places in (("bad0", "elsewhere"), ("own0", "own1")):  # a run that goes on, and one that begins
    try:
        train(parse_config(TrainConfig, json.loads(runs)["bad0"]), Path(folder) / places[rank], CPU)
    except UserError as error:
        assert "not all hosts see the same folder; put the run on a file system they share" in str(error), error
    else:
        raise AssertionError("it trained on")
    for trace in ("elsewhere/checkpoints", "own1/checkpoints", "own0/train.csv"):
        assert not (Path(folder) / trace).exists(), trace
checkpoints.NEWS = 60.0  # a host that learns late, as over NFS, that there is a folder now
first, late = Path(folder) / "first", Path(folder) / "late"
if rank == 1:
    threading.Timer(3, late.symlink_to, [first]).start()
train(parse_config(TrainConfig, json.loads(runs)["bad0"]), late if rank else first, CPU)
"""
SAMPLES = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from sat_ssvae import distributed
from sat_ssvae.config import parse_config
from sat_ssvae.engine.optimization import build_engine
from sat_ssvae.engine.run import Run
from sat_ssvae.training.losses import Objective
from sat_ssvae.training.memory import PLANS
from sat_ssvae.training.settings import TrainConfig
from sat_ssvae.vae.autoencoder import SSVAE

given, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
config = parse_config(TrainConfig, given)
device, ranks = torch.device("cpu"), 2
distributed.initialize(device)
shares = [distributed.rank()] if distributed.world_size() == ranks else range(ranks)
torch.manual_seed(0)
objective = Objective(SSVAE(config.model), config)
PLANS[1 if len(shares) == 1 else 0].apply(objective)
sizes = {"max_steps": config.max_steps, "micro_batch_size": config.batch_size}
engine = build_engine(objective, config.optimizer, device=device, **sizes)
run = Run(folder / "checkpoints", {"autoencoder": engine}, config.max_steps, clip_norm=config.optimizer.clip_norm)
norms = []
for step in range(config.max_steps):
    losses = []
    for share in shares:
        seeded = torch.Generator().manual_seed(ranks * step + share)
        video = torch.rand(config.batch_size, 3, 5, 32, 32, generator=seeded) * 2 - 1
        losses.append(engine(video, seeded).total)
        run.backward("autoencoder", losses[-1], last=share == shares[-1])
    norms += run.take_step([loss.detach() for loss in losses], {}).norms
if distributed.rank() == 0:
    save_file(objective.vae.state_dict(), folder / f"{distributed.world_size()}.safetensors")
    (folder / f"{distributed.world_size()}.json").write_text(json.dumps(norms))
"""
PDSH = """#!/usr/bin/env bash
# pdsh -S -f FANOUT -w HOSTS COMMAND...: what pdsh and ssh make of the command, all on this machine
IFS=, read -ra hosts <<<"$5"
shift 5
for number in "${!hosts[@]}"; do
    line=${*//%n/$number}
    bash -c "${line//%%/%}" &
    started+=($!)
done
for one in "${started[@]}"; do wait "$one" || exit; done
"""


@pytest.mark.slow
def test_ranks_agree_and_skip_together(tiny_shards, tmp_path, caplog):
    runs = {}
    longer = {"path": str(tiny_shards), "num_frames": 5, "num_workers": 0, "filters": {"duration": [1.6, None]}}
    for stage in (0, 1, 2):
        optimizer = {"warmup_steps": 0, "schedule": "constant", "zero_stage": stage, "clip_norm": 10.0}
        changes = {"max_steps": 5, "checkpoint_every": 3, "optimizer": optimizer, "batch_size": 1}
        runs[f"bad{stage}"] = settings(tiny_shards, **changes, data=longer)
        runs[f"half{stage}"] = settings(tiny_shards, **{**changes, "precision": "float16", "max_steps": 12})
        runs[f"gan{stage}"] = settings(
            tiny_shards, **changes, adversarial=ADVERSARIAL, precision="bfloat16", freeze_encoder=True, ema_decay=0.9
        )
    run_ranks(SCRIPT, [json.dumps(runs), str(tmp_path)], tmp_path / "log")

    for stage in (0, 1, 2):
        folder = tmp_path / f"bad{stage}"
        assert [line["skipped_steps"] for line in details(folder)] == [0, 1, 1, 2, 2]
        listed = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
        causes = [skip["cause"] for skip in listed]
        # The rank whose loss is not finite is known; a gradient is found bad after it was summed over the ranks.
        assert causes.count("infinite or NaN loss") == 1 and causes.count("infinite or NaN gradient") == 2
        assert causes.count("duration out of range") == 1  # once, not by each rank
        expected, actual = (load_file(tmp_path / f"bad{s}" / "vae" / "model.safetensors") for s in (0, stage))
        assert all((expected[name] - actual[name]).norm() <= 0.02 * expected[name].norm() for name in expected)
        half = details(tmp_path / f"half{stage}")
        assert half[-1]["skipped_steps"] == 0 and half[-1]["loss_scale"] < 2**16
        assert float(rows(tmp_path / f"gan{stage}")[-1]["adversarial"]) != 0
    frozen = [load_file(tmp_path / f"gan{stage}" / "vae" / "model.safetensors") for stage in (0, 1, 2)]
    for weights in frozen[1:]:  # averages included, the encoder is what it was; equal seeds began alike
        same = {name for name, value in weights.items() if value.equal(frozen[0][name])}
        assert {name for name in weights if name.startswith("encoder.")} <= same
    norms = [details(tmp_path / f"bad{stage}")[0]["gradient_norm"] for stage in (0, 1, 2)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)

    (tmp_path / "bad1" / "done").unlink()
    with pytest.raises(UserError, match=r"2 processes saved it, .* continue with 2 processes instead of 1"):
        train(parse_config(TrainConfig, runs["bad1"]), tmp_path / "bad1", CPU)
    # Without ZeRO each rank has everything, so any number of them goes on.
    train(parse_config(TrainConfig, runs["bad0"]), tmp_path / "bad0", CPU)
    assert "1 processes instead of 2: batches differ from before" in caplog.text
    assert (tmp_path / "bad0" / "done").exists()


@pytest.mark.slow
def test_sample_by_sample_zero_2_on_two_ranks_steps_like_one_rank(tmp_path):
    """One rank takes both ranks' batches whole, one after the other, without ZeRO."""
    optimizer = {"warmup_steps": 0, "schedule": "constant", "clip_norm": 1.0}
    given = {"batch_size": 3, "max_steps": 3, "lcr": {"weighting": "fixed"}}
    for ranks, own in ((2, {"zero_stage": 2}), (1, {"accumulation_steps": 2})):
        config = settings("none", **given, optimizer=optimizer | own)
        run_ranks(SAMPLES, [json.dumps(config), str(tmp_path)], tmp_path / "log", world_size=ranks)
    one, two = (json.loads((tmp_path / f"{ranks}.json").read_text()) for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-4)
    expected, actual = (load_file(tmp_path / f"{ranks}.safetensors") for ranks in (1, 2))
    assert all((expected[name] - actual[name]).norm() <= 1e-3 * expected[name].norm() for name in expected)


def test_the_process_group_is_gone_before_python_ends():
    """Else one of gloo's threads could free a tensor while Python ends, which aborts the process."""
    code = (
        "import atexit, torch, torch.distributed as dist; from sat_ssvae import distributed\n"
        "atexit.register(lambda: print(dist.is_initialized()))\n"
        "distributed.initialize(torch.device('cpu')); print(dist.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["True", "False"]


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.slow
def test_a_hostfile_starts_a_rank_on_each_host_with_the_arguments_as_given(tiny_shards, tmp_path):
    """Shells of the other hosts read them again; DeepSpeed gives each rank an option in front of the command's own."""
    venv, tools = tmp_path / "venv", tmp_path / "tools"
    executable(venv / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    executable(venv / "bin" / "deepspeed", f'#!/bin/sh\nexec {sys.executable} -m deepspeed.launcher.runner "$@"\n')
    fingerprint = f"cd {ROOT}; printf '%s\\n' {ROOT} | cat - pyproject.toml constraints.txt | cksum | tr ' ' '-'"
    state = subprocess.run(["bash", "-c", fingerprint], stdout=subprocess.PIPE, text=True, check=True).stdout
    (venv / ".sat-ssvae").write_text(f"{state.strip()} compare\n")
    executable(tools / "pdsh", PDSH)
    executable(tools / "ssh", "#!/bin/sh\necho 127.0.0.1\n")
    (tmp_path / "hosts").write_text("one slots=1\ntwo slots=1\n")
    config = settings(tiny_shards, max_steps=2, checkpoint_every=1, batch_size=1, optimizer={"zero_stage": 1})
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    pattern = f"{tiny_shards}/clips-{{000000..000002}}.tar"
    name = """a `b` "c" $HOME \\ 5%"""
    command = ["bash", str(ROOT / "scripts" / "train.sh"), "run.yaml", name, f"data.path={pattern}", "data.filters={}"]
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SAT_SSVAE_VENV": str(venv),
        "HOSTFILE": "hosts",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("autoencoder: ") == 1
    held = json.loads((tmp_path / "runs" / name / "config.json").read_text())
    assert held["data"]["path"] == pattern
    state = torch.load(
        tmp_path / "runs" / name / "checkpoints" / "step_1" / "mp_rank_00_model_states.pt", weights_only=True
    )
    assert state["world_size"] == 2


@pytest.mark.slow
def test_torchrun_starts_the_command_as_two_ranks(tiny_shards, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(settings(tiny_shards, max_steps=2, batch_size=1, optimizer={"zero_stage": 1})))
    command = ["torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    command += ["--module", "sat_ssvae.cli", "train", "--config", str(config), "--name", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", *command, "--output", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("autoencoder: ") == 1 and (tmp_path / "run" / "done").exists()


@pytest.mark.slow
def test_a_rank_that_loses_the_other_ends_with_one_line(tiny_shards, tmp_path):
    config, log, run = tmp_path / "run.yaml", tmp_path / "log", tmp_path / "run"
    config.write_text(json.dumps(settings(tiny_shards, max_steps=10**6, batch_size=1, checkpoint_every=10)))
    code = "import sys; from sat_ssvae.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "--config", str(config), "--name", "run", "--output", str(tmp_path)]
    first, second = ranks = start_ranks(code, arguments, log)
    try:
        while not (run / "checkpoints" / "step_10").exists():
            assert [rank.poll() for rank in ranks] == [None, None], log.read_text()
            time.sleep(0.1)
        second.kill()
        assert first.wait(timeout=120) == 2
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    said = log.read_text()
    assert "Traceback" not in said and "make room" not in said
    assert f"error: {run}: another process of this run ended" in said
