"""An autoencoder prepared for inference computes what it did, and notices when its weights change after all."""

import copy

import pytest
import torch

from sat_ssvae import SSVAE

from .small_models import random_video, tiny_vae

CLOSE = {"atol": 1e-5, "rtol": 0.0}


def twins(**sizes):
    """The same weights twice: as built, and prepared for inference."""
    vae = tiny_vae(**sizes)
    return vae, copy.deepcopy(vae).for_inference()


def round_trip(vae, x):
    with torch.no_grad():
        return vae.decode(vae.encode(x).mean)


@pytest.mark.parametrize("frames", [1, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_function_stays_the_same(frames, dtype):
    plain, prepared = (vae.to(dtype) for vae in twins())
    x = random_video(frames).to(dtype)
    for _ in range(2):  # the first call fills what the second one uses
        torch.testing.assert_close(round_trip(prepared, x), round_trip(plain, x), **CLOSE)


def test_other_sizes_than_the_first_one_are_right_too():
    plain, prepared = twins(base_channels=128, channel_multipliers=(1, 1), temporal_downsample=(True,))
    for x in (random_video(1, 8, 8), random_video(9, 24, 32), random_video(5, 8, 16)):
        torch.testing.assert_close(round_trip(prepared, x), round_trip(plain, x), **CLOSE)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="a processor without bfloat16 takes the plain path alone"
)
def test_fewer_operations_in_bfloat16_do_not_round_noticeably_more():
    """The size takes F(2, 3), whose sums are rounded, too; with gradients every convolution is a plain one."""
    exact, half = twins(base_channels=64, channel_multipliers=(1, 1), temporal_downsample=(True,))
    half.bfloat16()
    x = random_video(9, 32, 32)
    with torch.no_grad():
        z = exact.encode(x).mean
        video = exact.decode(z)
        fast = [(half.encode(x.bfloat16()).mean - z).std(), (half.decode(z.bfloat16()) - video).std()]
    plain = [(half.encode(x.bfloat16()).mean - z).std(), (half.decode(z.bfloat16()) - video).std()]
    assert fast != plain, "this size should take another path"
    assert all(ours < 1.25 * theirs for ours, theirs in zip(fast, plain, strict=True)), (fast, plain)


def test_kept_kernels_are_used_again():
    _, vae = twins()
    x = random_video(5)
    round_trip(vae, x)
    kernels = [module._kernel for module in vae.modules() if getattr(module, "keeps_kernel", False)]
    assert None not in kernels
    round_trip(vae, x)
    assert kernels == [module._kernel for module in vae.modules() if getattr(module, "keeps_kernel", False)]


def other_weights():
    torch.manual_seed(1)
    return SSVAE(tiny_vae().config).state_dict()


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: vae.load_state_dict(other_weights()),
        lambda vae: vae.load_state_dict(other_weights(), assign=True),
        lambda vae: [parameter.mul_(1.5) for parameter in vae.parameters()],
        lambda vae: vae.double().float().bfloat16(),
    ],
    ids=["loaded", "assigned", "in place", "another type"],
)
def test_changed_weights_are_noticed(change):
    plain, prepared = twins()
    x = random_video(5)
    round_trip(prepared, x)
    with torch.no_grad():
        for vae in (plain, prepared):
            change(vae)
    x = x.to(plain.mask_token.dtype)
    torch.testing.assert_close(round_trip(prepared, x), round_trip(plain, x), **CLOSE)


def test_gradients_reach_the_input():
    plain, prepared = twins()
    x = random_video(5)
    round_trip(prepared, x)
    gradients = []
    for vae in (plain, prepared):
        z = vae.encode(x).mean.detach().requires_grad_()
        gradients.append(torch.autograd.grad(vae.decode(z).square().sum(), z)[0])
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)


def test_weights_that_are_trained_on_are_not_kept():
    """An optimiser may write to them unseen (DeepSpeed does, through `.data`)."""
    plain, prepared = twins()
    x = random_video(5)
    prepared.requires_grad_(True)
    round_trip(prepared, x)
    for vae in (plain, prepared):
        for parameter in vae.parameters():
            parameter.data.mul_(1.5)
    torch.testing.assert_close(round_trip(prepared, x), round_trip(plain, x), **CLOSE)


def test_copies_work_and_the_file_is_the_same(tmp_path):
    plain, prepared = twins()
    x = random_video(5)
    expected = round_trip(prepared, x)
    torch.testing.assert_close(round_trip(copy.deepcopy(prepared), x), expected, **CLOSE)
    for name, vae in (("plain", plain), ("prepared", prepared)):
        vae.save_pretrained(tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "prepared")]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True])
def test_torch_compile_gives_the_same(prepared):
    """Traced as a compiler sees it, without compiling machine code, which would need a C++ compiler here."""
    vae = twins()[prepared]
    x = random_video(5)
    expected = round_trip(vae, x)
    torch._dynamo.reset()
    encode, decode = (torch.compile(part, backend="aot_eager", fullgraph=True) for part in (vae.encoder, vae.decoder))
    with torch.no_grad():
        z = encode(x)[:, : vae.latent_channels]
        torch.testing.assert_close(decode(z), expected, **CLOSE)
