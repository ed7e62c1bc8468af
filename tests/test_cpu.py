"""An autoencoder prepared for inference on a CPU computes what it did, and notices when its weights change."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat_ssvae import SSVAE
from sat_ssvae.vae import cpu, minimal_filtering
from sat_ssvae.vae.layers import CausalConv3d

from .small_models import random_video, tiny_vae

CLOSE = {"atol": 2e-5, "rtol": 0.0}


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
    plain, prepared = twins(base_channels=64, channel_multipliers=(1, 1), temporal_downsample=(True,))
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


class Operators(TorchDispatchMode):
    """Counts what torch executes, by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.__name__] = self.counts.get(function.__name__, 0) + 1
        return function(*args, **(kwargs or {}))


PACKING = "_reorder_convolution_weight.default"
KEPT, ONE_DNN = "_convolution_pointwise.default", "mkldnn_convolution.default"


def executed(run):
    with Operators() as operators, torch.no_grad():
        run()
    return operators.counts


def test_weights_are_packed_once_and_used_again():
    _, vae = twins()
    x = random_video(5)
    first, second = (executed(lambda: vae.decode(vae.encode(x).mean)) for _ in range(2))
    assert first[PACKING] > 0 and PACKING not in second
    assert first[KEPT] == second[KEPT]


def bytes_in_tensors():
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter) and x.layout is torch.strided]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_packed_weights_replace_those_they_were_made_of():
    fast, conv = prepared(64, kept=True)
    x = input_of(64, 7, 24, 24)
    before = bytes_in_tensors()
    with torch.no_grad():
        fast.convolve(x)
    assert bytes_in_tensors() - before < conv.conv.weight.nbytes / 10


def other_weights():
    torch.manual_seed(1)
    return SSVAE(tiny_vae().config).state_dict()


@pytest.mark.parametrize(
    "change",
    [
        lambda vae: vae.load_state_dict(other_weights()),
        lambda vae: vae.load_state_dict(other_weights(), assign=True),
        lambda vae: [parameter.mul_(1.5) for parameter in vae.parameters()],
        lambda vae: [parameter.data.copy_(1.5 * parameter) for parameter in vae.parameters()],  # EMAModel of diffusers
        lambda vae: vae.double().float().bfloat16(),
    ],
    ids=["loaded", "assigned", "in place", "through data", "another type"],
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
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[0].norm()


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


@pytest.mark.parametrize("change", ["autocast", "gradients", "trainable"])
def test_what_is_not_inference_takes_the_plain_path(change):
    _, vae = twins()
    x = random_video(5)

    def run():
        if change == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return vae.encode(x)
        with torch.set_grad_enabled(change == "gradients"):
            return vae.requires_grad_(change == "trainable").encode(x)

    counts = executed(run)
    assert KEPT not in counts and PACKING not in counts


def prepared(channels, out_channels=None, bias=True, kept=False):
    """A convolution with the paths of a CPU, and its plain twin."""
    torch.manual_seed(0)
    conv = CausalConv3d(channels, out_channels or channels)
    conv.conv.bias = conv.conv.bias if bias else None
    fast = nn.ModuleList([copy.deepcopy(conv)]).requires_grad_(not kept)
    cpu.install(fast)
    return fast[0], conv


def input_of(channels, frames, height, width, batch=1):
    return torch.randn(batch, channels, frames, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("frames", "products"), [(4, 4), (5, 1 + 4), (6, 6), (12, 4 + 6), (13, 1 + 4 + 6)])
@pytest.mark.parametrize(("taps", "batch"), [("all", 1), ("all", 2), ("phases", 1)])
def test_minimal_filtering_in_time_equals_the_plain_convolution(frames, products, taps, batch, kept):
    fast, conv = prepared(64, 66, kept=kept)
    x = input_of(64, frames, 33, 33, batch)
    with torch.no_grad():
        torch.testing.assert_close(fast.convolve(x, taps), conv.convolve(x, taps), atol=2e-5, rtol=1e-5)
    counts = executed(lambda: fast.convolve(x, taps))
    assert counts[KEPT if kept else ONE_DNN] == products, "F(4, 3) and, for what is left, F(2, 3) and single taps"


@pytest.mark.parametrize("frames", [5, 6])
def test_a_still_start_spares_taps_in_time(frames):
    fast, conv = prepared(64)
    x = input_of(64, frames, 33, 33)
    x[:, :, :2] = x[:, :, 2:3]
    with torch.no_grad():
        torch.testing.assert_close(fast.convolve(x, starts_still=True), conv.convolve(x), atol=2e-5, rtol=1e-5)
    made = executed(lambda: fast.convolve(x, starts_still=True))["mm.default"]
    assert made == (2 if frames == 5 else 1), "kernels of summed taps where the number of outputs is odd, and of tiles"


def test_blocks_of_minimal_filtering_join(monkeypatch):
    fast, conv = prepared(64)
    x = input_of(64, 13, 24, 20)
    monkeypatch.setattr(minimal_filtering, "BLOCK", 64 * 24 * 20)
    with torch.no_grad():
        torch.testing.assert_close(fast.convolve(x), conv.convolve(x), atol=2e-5, rtol=1e-5)
    assert executed(lambda: fast.convolve(x))[ONE_DNN] == 1 + 4 + 2 * 6


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("channels", [1, 5])
def test_small_convolutions_equal_torchs(channels, stride, biased):
    torch.manual_seed(channels)
    conv = CausalConv3d(channels, channels, stride)
    conv.conv.bias = conv.conv.bias if biased else None
    layers = nn.ModuleList([conv])
    cpu.install(layers)
    x = input_of(channels, 5, 7, 6)
    with torch.no_grad():
        ours = layers[0].convolve(x, padding=2 - stride)
        plain = F.conv3d(x, conv.conv.weight, conv.conv.bias, stride=stride, padding=(0, 2 - stride, 2 - stride))
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)


def test_chunks_equal_the_whole_where_only_the_whole_takes_minimal_filtering():
    _, vae = twins(base_channels=64, channel_multipliers=(1, 1), temporal_downsample=(True,))
    vae.requires_grad_(True)  # weights that are not kept need more positions for it
    x = random_video(5, 24, 32)
    with torch.no_grad():
        whole, chunked = vae.encode(x), vae.encode(x, chunk_frames=1)
        torch.testing.assert_close(chunked.mean, whole.mean, atol=1e-5, rtol=0)
        video = vae.decode(whole.mean)
        torch.testing.assert_close(vae.decode(whole.mean, chunk_frames=1), video, atol=1e-5, rtol=0)
    counts = [executed(lambda chunk=chunk: vae.encode(x, chunk_frames=chunk)) for chunk in (None, 1)]
    assert "mm.out" in counts[0] and "mm.out" not in counts[1], "the transforms of F(4, 3)"
