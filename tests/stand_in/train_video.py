"""Stands in for CogVideoX's training: the same arguments, log lines and checkpoint folders."""

import os
import sys
import time
from pathlib import Path

import torch
from arguments import get_args
from data_video import SFTDataset
from diffusion_video import SATVideoDiffusionEngine


def save(engine, folder, iteration):
    (folder / str(iteration)).mkdir(parents=True, exist_ok=True)
    torch.save({"module": engine.state_dict()}, folder / str(iteration) / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text(str(iteration))


def main():
    from sat.model.base_model import get_model
    from sat.training.model_io import load_checkpoint

    args = get_args()
    engine = get_model(args, SATVideoDiffusionEngine)
    start = load_checkpoint(engine, args)
    folder = Path(args.save) / f"{args.experiment_name}-date"
    save(engine, folder, 0)
    data = SFTDataset.create_dataset_function(args.train_data[0], args, **args.data_config.params)
    optimizer = torch.optim.Adam(engine.model.parameters(), lr=0.01)
    torch.manual_seed(args.seed)
    if "HANG" in os.environ:
        Path(os.environ["HANG"]).write_text(str(os.getpid()))
        time.sleep(600)
    for iteration in range(start + 1, args.train_iters + 1):
        item = data[iteration % len(data)]
        latents = engine.encode_first_stage(item["mp4"].movedim(1, 0)[None], None).movedim(2, 1)
        cond, _ = engine.conditioner.get_unconditional_conditioning({"txt": [item["txt"]]}, None, ["txt"])
        idx = torch.randint(0, 1000, (1,))
        signal = engine.denoiser.sigmas[idx]
        sigma = (1 - signal**2).sqrt()
        noisy = signal * latents + sigma * torch.randn_like(latents)
        loss = ((engine.denoiser(engine.model, noisy, signal, cond, idx=idx) - latents) / sigma).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (
            iteration == int(os.environ.get("STOP_AT", "0"))
            and engine.first_stage_model.__class__.__name__ != "PooledPixels"
        ):
            raise MemoryError("as if the machine were too small")
        sys.stdout.write(f" iteration {iteration:8d}/{args.train_iters:8d} | elapsed | total loss {loss:.6E} | x\n")
        if iteration % args.save_interval == 0:
            save(engine, folder, iteration)
    save(engine, folder, args.train_iters)  # as SAT does, wherever the interval falls


if __name__ == "__main__":
    main()
