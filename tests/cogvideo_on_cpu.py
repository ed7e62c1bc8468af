"""Runs a script of CogVideoX, or a module, where there is no GPU: python cogvideo_on_cpu.py train_video.py ARGUMENTS

    python cogvideo_on_cpu.py -m sat_ssvae.cogvideo.worker job.json

CogVideoX's and SAT's code names the device "cuda" in many places. Here that means the CPU; nothing else is changed.
"""

import importlib.util
import runpy
import sys
import types

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def on_cpu(value):
    """The CPU for what names a GPU ("cuda", "cuda:0", its number 0 where a device is asked for)."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return CPU if isinstance(value, str) and value.startswith("cuda") else value


class OnCPU(TorchFunctionMode):
    """Replaces devices in the arguments of torch's functions."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call `function` with the CPU as its device."""
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.device and args and type(args[0]) is int:
            return CPU
        if function is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], CPU, *args[2:])
        kwargs = {name: on_cpu(value) for name, value in (kwargs or {}).items()}
        return function(*(on_cpu(value) for value in args), **kwargs)


def prepare():
    """Before CogVideoX is imported."""
    module_to = torch.nn.Module.to

    def to(module, *args, **kwargs):
        args = [CPU if type(value) is int else on_cpu(value) for value in args]
        return module_to(module, *args, **{name: on_cpu(value) for name, value in kwargs.items()})

    torch.nn.Module.to = to
    torch.nn.Module.cuda = lambda module, device=None: module
    for name in ("synchronize", "set_device", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    torch.cuda.current_device = lambda: CPU
    # torchvision's build for CUDA does not import beside a CPU torch unless its operators have declarations.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # data_video.py imports torchvision's old reader, which SFTDataset does not use.
    reader = types.ModuleType("torchvision.io.video")
    reader.__dict__.update(dict.fromkeys(["av", "_check_av_available", "_read_from_stream", "_align_audio_frames"]))
    for module in (reader, types.ModuleType("torchvision.io._video_opt")):
        sys.modules[module.__name__] = module
    if importlib.util.find_spec("triton") is None:  # SAT imports a kernel that nothing here uses
        stand_in = types.ModuleType("sat.model.position_embedding.triton_rotary_embeddings")
        stand_in.FastRotaryEmbedding = None
        sys.modules[stand_in.__name__] = stand_in
    from deepspeed.ops import __compatible_ops__ as compatible_ops

    compatible_ops["deepspeed_shm_comm"] = False  # would be compiled for more than a minute
    return library


if __name__ == "__main__":
    kept = prepare()  # operators vanish with their library
    sys.argv = sys.argv[1:]
    sys.path.insert(0, "")
    with OnCPU():
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
