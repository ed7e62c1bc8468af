"""Memory that training the published model needs on each GPU, by resolution and ZeRO stage.

    python scripts/estimate_memory.py [--frames 17] [--batch-size 1] [--ranks 8] [--checkpointed]

Weights, gradients and Adam's moments are counted (float32, divided over the ranks as ZeRO does). Activations are
measured: the forward pass runs in bf16 on fake tensors, which compute shapes and nothing else, and what it keeps
for the backward pass is added up. Not in it: the perceptual network, discriminators, buffers of
the network's library, and what a convolution needs while it runs.
"""

import argparse

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.engine.optimization import BUCKET
from sat_ssvae.vae.layers import ResidualBlock

GIB = 2**30
SIZES = {"256 px": (256, 256), "512 px": (512, 512), "1080p": (1072, 1920)}


def kept_bytes(vae: SSVAE, video: Tensor, frozen_encoder: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in vae.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor  # holding it, so that its storage is not used again
        return tensor

    # What is computed again keeps its input, which no hook of autograd sees.
    hooks = [
        block.register_forward_pre_hook(
            lambda _block, inputs: kept.__setitem__(inputs[0].untyped_storage()._cdata, inputs[0])
        )
        for block in vae.modules()
        if isinstance(block, ResidualBlock) and block.checkpointed
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if frozen_encoder:  # its activations are not kept
            size = (video.shape[0], vae.config.latent_channels, *vae.latent_size(*video.shape[2:]))
            latents = video.new_empty(size)
        else:
            latents = vae.encode(video).mode()
        vae.decode(latents)
    for hook in hooks:
        hook.remove()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def state_bytes(module: nn.Module, stage: int, ranks: int, frozen_encoder: bool, half_copies: bool = True) -> float:
    """Bytes of weights (float32, and bf16 copies for the convolutions), gradients and Adam's two moments on one GPU."""
    everything = sum(parameter.numel() for parameter in module.parameters())
    frozen = sum(p.numel() for name, p in module.named_parameters() if frozen_encoder and name.startswith("encoder."))
    trained = everything - frozen
    # ZeRO keeps its own float32 copy of the share that it steps, and a buffer to sum gradients in; plain AdamW steps
    # the weights themselves.
    copies = 0 if stage == 0 else 4 * trained / ranks + 4 * min(BUCKET, trained)
    gradients = 4 * trained / (ranks if stage == 2 else 1)
    moments = 8 * trained / (ranks if stage else 1)
    return (6 if half_copies else 4) * everything + copies + gradients + moments


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--checkpointed", action="store_true", help="with checkpoint_activations=true")
    options = parser.parse_args()
    with FakeTensorMode():
        report(options)


def report(options: argparse.Namespace) -> None:
    """The table."""
    torch.set_default_dtype(torch.bfloat16)  # fake weights cannot be converted afterwards
    vae = SSVAE(SSVAEConfig())
    vae.checkpoint_activations(options.checkpointed)
    print(f"GiB a GPU, {options.ranks} GPUs, {options.batch_size} x {options.frames} frames each")
    print("| size | encoder | activations | ZeRO 0 | ZeRO 1 | ZeRO 2 |\n|---|---|---|---|---|---|")
    for name, (height, width) in SIZES.items():
        for frozen in (False, True):
            shape = (options.batch_size, 3, options.frames, height, width)
            video = torch.empty(shape, dtype=torch.bfloat16)
            activations = kept_bytes(vae, video, frozen)
            totals = [activations + state_bytes(vae, stage, options.ranks, frozen) for stage in (0, 1, 2)]
            cells = " | ".join(f"{total / GIB:.1f}" for total in (activations, *totals))
            print(f"| {name} | {'frozen' if frozen else 'trained'} | {cells} |")


if __name__ == "__main__":
    main()
