"""The norm with SiLU that training uses: plain autograd's result and gradients, from less memory."""

import pytest
import torch
import torch.nn.functional as F

from sat_ssvae.vae.layers import CausalConv3d
from sat_ssvae.vae.norm import RMSNorm


def gradients(compute, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = compute(*leaves)
    weight = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return result, torch.autograd.grad((result * weight).sum(), leaves)


@pytest.mark.parametrize("channels", [6, 72])  # few channels take another path on a CPU
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_norm_silu_and_convolution_have_the_gradients_of_autograd(dtype, tolerance, frames, channels, monkeypatch):
    monkeypatch.setattr("sat_ssvae.vae.norm.AT_ONCE", 2 * channels * 8 * 8 * 2)  # two frames, then one
    conv = CausalConv3d(channels, 4).to(dtype)
    x = torch.randn(2, channels, frames, 8, 8).to(dtype)
    x[:, :, -1, 2:4] = 0  # black: the norm is at its lower bound there
    gamma = 1 + torch.rand(channels, 1, 1, 1).to(dtype)

    def fused(x, gamma):
        norm = RMSNorm(channels)
        del norm.gamma
        norm.gamma = gamma
        return conv.after_norm(norm, x, None)

    def plain(x, gamma):
        return conv(F.silu(x * RMSNorm.scale(x) * gamma.to(x.dtype)))

    (result, mine), (expected, reference) = gradients(fused, x, gamma), gradients(plain, x, gamma)
    for gradient, its in zip((result, *mine), (expected, *reference), strict=True):
        assert gradient.isfinite().all()
        assert (gradient - its).norm() <= tolerance * its.norm()


def test_only_the_input_is_kept():
    norm, x = RMSNorm(6), torch.randn(1, 6, 2, 4, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        CausalConv3d(6, 4).after_norm(norm, x, None)
    shapes = [tuple(tensor.shape) for tensor in kept]
    assert shapes.count((1, 6, 2, 4, 4)) == 1 and (1, 6, 4, 4, 4) in shapes  # and the convolution's own input
