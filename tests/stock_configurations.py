"""CogVideoX configurations with the stock files' numbers, our overlays over them, and changes: as files."""

import copy

import yaml

from sat_ssvae.cogvideo.compatibility import find_mismatches
from sat_ssvae.cogvideo.first_stage import build_first_stage
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs
from sat_ssvae.latents.dataset import LatentInfo

from .test_project import ROOT

OVERLAYS = ROOT / "cogvideo_configs"
NETWORK = "model.network_config.params"
POSITIONS = f"{NETWORK}.modules.pos_embed_config.params"
EMBEDDER = {"target": "sgm.modules.encoders.modules.FrozenT5Embedder", "params": {"max_length": 226}}
SFT = {"args": {"mode": "finetune"}, "data": {"target": "data_video.SFTDataset"}}


def check(files, era=None):
    """What does not fit in these files."""
    config = SATConfig(merge_configs(files))
    return find_mismatches(config, build_first_stage(config).latent_format, era)


def network(positions, **params):
    """The transformer's section, with a class of positions and its parameters."""
    targets = {
        "pos_embed": positions["target"],
        "patch_embed": "dit_video_concat.ImagePatchEmbeddingMixin",
        "adaln_layer": "dit_video_concat.AdaLNMixin",
        "final_layer": "dit_video_concat.FinalLayerMixin",
    }
    modules = {f"{name}_config": {"target": target} for name, target in targets.items()}
    modules["pos_embed_config"]["params"] = positions["params"]
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_layers": 2, "time_compressed_rate": 4, "num_frames": 49}
    return {"target": "dit_video_concat.DiffusionTransformer", "params": {**sizes, "modules": modules, **params}}


def stock_v1(**model):
    """The numbers of cogvideox_2b.yaml and sft.yaml that have to do with latents."""
    table = {"text_length": 226, "height_interpolation": 1.875, "width_interpolation": 1.875}
    positions = {"target": "dit_video_concat.Basic3DPositionEmbeddingMixin", "params": table}
    sizes = {"latent_width": 90, "latent_height": 60, "patch_size": 2, "in_channels": 16, "out_channels": 16}
    stage = {"target": "vae_modules.autoencoder.VideoAutoencoderInferenceWrapper", "params": {"cp_size": 1}}
    values = {
        "model": {
            "scale_factor": 1.15258426,
            "network_config": network(positions, **sizes),
            "first_stage_config": stage,
            "denoiser_config": {"target": "sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser"},
            "sampler_config": {"target": "sgm.modules.diffusionmodules.sampling.VPSDEDPMPP2MSampler"},
            "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": [EMBEDDER]}},
            **model,
        }
    }
    return (
        values
        | copy.deepcopy(SFT)
        | {"data": SFT["data"] | {"params": {"video_size": [480, 720], "max_num_frames": 49}}}
    )


def stock_main(**model):
    """Those of cogvideox1.5_5b.yaml."""
    values = stock_v1(latent_input=True, **model)
    params = values["model"]["network_config"]["params"]
    params |= {"num_frames": 81, "latent_width": 300, "latent_height": 300, "patch_size": [2, 2, 2]}
    target = "dit_video_concat.Rotary3DPositionEmbeddingMixin"
    positions = {"text_length": 224, "hidden_size_head": 32}
    params["modules"]["pos_embed_config"] = {"target": target, "params": positions}
    return values


STOCKS = {
    "cogvideox_2b_5b": stock_v1(),
    "cogvideox_5b_i2v": stock_v1(noised_image_input=True),
    "cogvideox1.5_5b": stock_main(),
    "cogvideox1.5_5b_i2v": stock_main(noised_image_input=True),
}
STOCKS["cogvideox1.5_5b_i2v"]["model"]["latent_input"] = False
INFERENCE = {
    "v1.0": {"args": {"mode": "inference", "latent_channels": 16, "sampling_num_frames": 13}},
    "main": {
        "args": {
            "mode": "inference",
            "latent_channels": 16,
            "sampling_num_frames": 22,
            "sampling_image_size": [768, 1360],
        }
    },
}


def write_files(folder, vae, name, changes=None, sampling=False, more=()):
    """Files of the stock numbers, the overlay, further overlays, and dotted changes, in the order of --base."""
    era = "main" if "1.5" in name else "v1.0"
    layers = [STOCKS[name], *([INFERENCE[era], {"args": {"image2video": "i2v" in name}}] if sampling else [])]
    own = {"model.first_stage_config.params.ckpt_path": str(vae)} | (changes or {})
    files = []
    for number, values in enumerate([*layers, nested(own)]):
        files.append(folder / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(values))
    files[-1:-1] = [OVERLAYS / f"{overlay}.yaml" for overlay in (name, *more)]
    return files


def nested(dotted):
    """{"a.b": 1} as {"a": {"b": 1}}."""
    values = {}
    for key, value in dotted.items():
        *parents, last = key.split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return values


def latents(folder, frames, *sizes, mean=0.0):
    """A folder that says of itself what `sat-ssvae encode` would, with latents of videos of these sizes."""
    shapes = [(48, (frames - 1) // 4 + 1, height // 16, width // 16) for height, width in sizes]
    values = {"fingerprint": "x", "shapes": shapes, "fps": 8}
    statistics = {"latent_mean": [mean] * 48, "latent_std": [1.0] * 48}
    folder.mkdir()
    (folder / "latents.json").write_text(LatentInfo(num_frames=frames, **values, **statistics).model_dump_json())
    return {"args.train_data": [str(folder)]}
