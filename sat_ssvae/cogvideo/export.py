"""A transformer that CogVideoX's SAT code trained on SSVAE's latents, as a pipeline of diffusers.

    export_pipeline(config, read_transformer(Path("ckpts/run")), build_first_stage(config), Path("pipeline"))

    import sat_ssvae.diffusers                                  # diffusers finds the autoencoder's class there
    CogVideoXPipeline.from_pretrained("pipeline")("a red bar moves")

The transformer's outputs are SAT's up to about 2e-5: the last layer norm has another epsilon in diffusers.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import UserError, and_more, first_line
from ..storage import atomic_folder, write_text
from .first_stage import SSVAEFirstStage
from .sat_config import DISCRETIZATION, POSITIONS, SATConfig
from .sat_transformer import MODEL

RENAMED = (
    (r"time_embed\.0\.", "time_embedding.linear_1."),
    (r"time_embed\.2\.", "time_embedding.linear_2."),
    (r"ofs_embed\.0\.", "ofs_embedding.linear_1."),
    (r"ofs_embed\.2\.", "ofs_embedding.linear_2."),
    (r"mixins\.patch_embed\.", "patch_embed."),
    (r"mixins\.final_layer\.norm_final\.", "norm_out.norm."),
    (r"mixins\.final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"mixins\.final_layer\.linear\.", "proj_out."),
    (r"mixins\.adaln_layer\.query_layernorm_list\.(\d+)\.", r"transformer_blocks.\1.attn1.norm_q."),
    (r"mixins\.adaln_layer\.key_layernorm_list\.(\d+)\.", r"transformer_blocks.\1.attn1.norm_k."),
    (r"mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1\.", r"transformer_blocks.\1.norm{}.linear."),
    (r"transformer\.final_layernorm\.", "norm_final."),
    (r"transformer\.layers\.(\d+)\.input_layernorm\.", r"transformer_blocks.\1.norm1.norm."),
    (r"transformer\.layers\.(\d+)\.post_attention_layernorm\.", r"transformer_blocks.\1.norm2.norm."),
    (r"transformer\.layers\.(\d+)\.attention\.query_key_value\.", r"transformer_blocks.\1.attn1.to_{}."),
    (r"transformer\.layers\.(\d+)\.attention\.dense\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"transformer\.layers\.(\d+)\.mlp\.dense_h_to_4h\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"transformer\.layers\.(\d+)\.mlp\.dense_4h_to_h\.", r"transformer_blocks.\1.ff.net.2."),
)
"""How the names of SAT's tensors begin, and diffusers'; {} where one tensor becomes several."""
UNUSED = re.compile(r"transformer\.(word|position)_embeddings\.|mixins\.pos_embed\.freqs_(sin|cos)$")
"""Tensors that the model does not use, or that follow from the configuration."""
POSITION_TABLE = "mixins.pos_embed.pos_embedding"
TOKENIZERS = ("spiece.model", "tokenizer.json")
_LORA = re.compile(r"(.*)\.(?:original\.(weight|bias)|matrix_([AB])\.(\d+))$")


def export_pipeline(
    config: SATConfig,
    weights: Mapping[str, Tensor],
    stage: SSVAEFirstStage,
    output: Path,
    text_encoder: Path | None = None,
) -> None:
    """Write the folder that `CogVideoXPipeline.from_pretrained` (or `CogVideoXImageToVideoPipeline`) reads.

    `weights` have SAT's names. `text_encoder` is the folder of T5 and its tokenizer; without one the pipeline takes
    `prompt_embeds`.

    Raises:
        UserError: `output` exists or has no room, or the transformer or its noise schedule has parts that diffusers'
            model lacks.
    """
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline

    from ..diffusers import AutoencoderSSVAE

    if output.exists():
        raise UserError(f"{output}: exists already; choose another folder, or delete it")
    tokenizer, encoder = (None, None) if text_encoder is None else _read_text_encoder(text_encoder)
    _check_text(encoder, config)
    stage.vae.latent_stats = stage.stats
    pipeline_class = CogVideoXImageToVideoPipeline if config.has_images else CogVideoXPipeline
    pipeline = pipeline_class(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=AutoencoderSSVAE.from_ssvae(stage.vae),
        transformer=build_transformer(config, weights, stage.spatial_factor),
        scheduler=build_scheduler(config),
    )
    module = AutoencoderSSVAE.__module__.removeprefix("sgm.")  # where this package is a copy in sgm/
    _write_pipeline(pipeline, module, output)


def _write_pipeline(pipeline: Any, autoencoder_module: str, output: Path) -> None:
    with atomic_folder(output) as partial:
        try:
            pipeline.save_pretrained(partial)
        except SafetensorError as error:
            raise UserError(f"{output}: cannot be written ({first_line(error)}); make room") from None
        index = json.loads((partial / "model_index.json").read_text(encoding="utf-8"))
        index["vae"][0] = autoencoder_module
        write_text(partial / "model_index.json", json.dumps(index, indent=2) + "\n")


def build_scheduler(config: SATConfig) -> Any:
    """Diffusers' form of SAT's sampler, with the noise schedule of a configuration.

    Raises:
        UserError: the schedule has a setting that diffusers' scheduler lacks.
    """
    from diffusers import CogVideoXDPMScheduler

    names = {"shift_scale": "snr_shift_scale", "linear_start": "beta_start", "linear_end": "beta_end"}
    given = config.get(DISCRETIZATION) or {}
    if unknown := sorted(given.keys() - names):
        raise UserError(
            f"{DISCRETIZATION}.{unknown[0]}: diffusers' scheduler has no such setting; it cannot be exported"
        )
    return CogVideoXDPMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **{names[name]: value for name, value in ({"shift_scale": 1.0} | given).items()},
    )


def build_transformer(config: SATConfig, weights: Mapping[str, Tensor], spatial_factor: int) -> Any:
    """Diffusers' CogVideoXTransformer3DModel with the weights of SAT's.

    `weights` may hold others as well; `spatial_factor`: pixels per latent position.

    Raises:
        UserError: the transformer has parts that diffusers' model lacks, is not the configuration's, or diverged.
    """
    from diffusers import CogVideoXTransformer3DModel

    settings = transformer_settings(config, spatial_factor)
    own = {name.removeprefix(MODEL): value for name, value in weights.items() if name.startswith(MODEL)}
    if not own:
        example = next(iter(weights))
        raise UserError(f"the checkpoint has no transformer: no tensor's name begins with {MODEL} (one is {example})")
    own = _merge_lora(own, float(config.network("modules.lora_config.params.lora_alpha") or 1))
    table = own.pop(POSITION_TABLE, None)
    converted = {name: part for key, value in own.items() for name, part in _converted(key, value)}
    if settings["use_learned_positional_embeddings"] and table is not None:
        converted["patch_embed.pos_embedding"] = table
    with torch.device("meta"):  # the checkpoint's weights take the place of these
        transformer = CogVideoXTransformer3DModel(**settings)
    expected = {name: value.shape for name, value in transformer.state_dict().items()}
    found = {name: value.shape for name, value in converted.items()}
    if differing := sorted(dict(expected.items() ^ found.items())):
        which = f"{differing[0]}{and_more(differing)}"
        raise UserError(f"{which} does not fit the configuration; give the --base files used for training")
    _check_values(converted)
    transformer.load_state_dict(converted, assign=True)
    if not settings["use_rotary_positional_embeddings"]:
        transformer.patch_embed.register_buffer("pos_embedding", _positions(settings, table), persistent=False)
    return transformer.eval()


def transformer_settings(config: SATConfig, spatial_factor: int) -> dict[str, Any]:
    """The arguments of diffusers' CogVideoXTransformer3DModel for a configuration of SAT.

    Raises:
        UserError: a number is missing, or diffusers' model cannot have it.
    """
    heads, hidden = (config.required_network(name) for name in ("num_attention_heads", "hidden_size"))
    time, height, width = config.patch
    height_scale, width_scale, time_scale = (config.interpolation(axis) for axis in ("height", "width", "time"))
    if height != width or height_scale != width_scale:
        raise UserError("diffusers' transformer has one patch size and one interpolation for height and width")
    rows, columns, frames = _trained_size(config, spatial_factor)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": hidden // heads,
        "in_channels": config.required_network("in_channels"),
        "out_channels": config.required_network("out_channels"),
        "time_embed_dim": config.network("time_embed_dim") or hidden,
        "ofs_embed_dim": config.network("ofs_embed_dim"),
        "text_embed_dim": config.required_network("modules.patch_embed_config.params.text_hidden_size"),
        "num_layers": config.required_network("num_layers"),
        "sample_height": rows,
        "sample_width": columns,
        "sample_frames": frames,
        "patch_size": height,
        "patch_size_t": time if config.era == "main" else None,
        "temporal_compression_ratio": config.required_network("time_compressed_rate"),
        "max_text_seq_length": config.get(f"{POSITIONS}.text_length") or 0,
        "norm_elementwise_affine": bool(config.network("elementwise_affine")),
        "spatial_interpolation_scale": height_scale,
        "temporal_interpolation_scale": time_scale,
        "use_rotary_positional_embeddings": config.rotary,
        "use_learned_positional_embeddings": bool(config.get(f"{POSITIONS}.learnable_pos_embed")),
    }


def _trained_size(config: SATConfig, spatial_factor: int) -> tuple[int, int, int]:
    """Latent rows and columns, and frames, of the videos that were trained on: what the pipeline makes by default."""
    rows, columns = (config.required_network(f"latent_{side}") for side in ("height", "width"))
    size = config.get("data.params.video_size")
    if config.era == "main" and config.rotary and size:  # where the table may be larger
        rows, columns = (pixels // spatial_factor for pixels in size)
    return rows, columns, config.required_network("num_frames")


def _converted(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Diffusers' (name, tensor) for one of SAT's; none for what is not used."""
    if UNUSED.search(name):
        return
    for beginning, replacement in RENAMED:
        renamed, found = re.subn(f"^{beginning}", replacement, name)
        if not found:
            continue
        if "to_{}" in renamed:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                yield renamed.format(letter), part.clone()
        elif "norm{}" in renamed:  # of video: shift, scale, gate for attention, then for the MLP; then those of text
            if len(value) % 4:
                raise UserError(f"{name} has {len(value)} rows, must have those of two norms for video and for text")
            video, text = value.unflatten(0, (2, 2, -1)).unbind()
            for number in (0, 1):
                yield renamed.format(number + 1), torch.cat([video[number], text[number]])
        else:
            yield renamed, value.clone()
        return
    raise UserError(f"{name}: diffusers' CogVideoXTransformer3DModel has no such part; it cannot be exported")


def _check_values(weights: Mapping[str, Tensor]) -> None:
    if quantised := [name for name, value in weights.items() if not value.is_floating_point()]:
        found = f"{quantised[0]}{and_more(quantised)} holds {weights[quantised[0]].dtype}"
        raise UserError(f"{found}; give weights in floating point")
    broken = [name for name, value in weights.items() if not value.float().isfinite().all()]  # float8 cannot tell
    if broken:
        found = f"{broken[0]}{and_more(broken)} holds NaN or infinity"
        raise UserError(f"{found}, so the training diverged; export the folder of an earlier iteration")


def _merge_lora(weights: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """SAT's low-rank additions, added to the layers that they were trained beside."""
    merged: dict[str, Tensor] = {}
    additions: dict[str, dict[tuple[str, int], Tensor]] = {}
    for name, value in weights.items():
        if found := _LORA.match(name):
            layer, kind, letter, number = found.groups()
            if kind:
                merged[f"{layer}.{kind}"] = value
            else:
                additions.setdefault(layer, {})[letter, int(number)] = value.float()
        else:
            merged[name] = value
    for layer, matrices in additions.items():
        base = merged[f"{layer}.weight"]
        merged[f"{layer}.weight"] = (base.float() + _addition(layer, matrices, base, alpha)).to(base.dtype)
    return merged


def _addition(layer: str, matrices: Mapping[tuple[str, int], Tensor], base: Tensor, alpha: float) -> Tensor:
    """What the matrices of a layer, A_i `(rank, in)` and B_i `(rows, rank)`, add to its weight `base`."""
    pairs = [(matrices["A", number], matrices["B", number]) for number in range(len(matrices) // 2)]
    fitting = all(a.shape == (b.shape[1], base.shape[1]) for a, b in pairs)
    if not fitting or sum(len(b) for _, b in pairs) != len(base):
        raise UserError(f"{layer}: its LoRA matrices do not fit its weight; give the checkpoint as SAT wrote it")
    return torch.cat([b @ a * (alpha / len(a)) for a, b in pairs])


def _positions(settings: Mapping[str, Any], table: Tensor | None) -> Tensor:
    """The table of positions, which diffusers computes; `table` is the checkpoint's, which must not be another."""
    from diffusers.models.embeddings import CogVideoXPatchEmbed

    sizes = ("patch_size", "patch_size_t", "sample_width", "sample_height", "sample_frames", "max_text_seq_length")
    scales = ("temporal_compression_ratio", "spatial_interpolation_scale", "temporal_interpolation_scale")
    computed = CogVideoXPatchEmbed(
        in_channels=1,
        embed_dim=settings["num_attention_heads"] * settings["attention_head_dim"],
        text_embed_dim=1,
        use_learned_positional_embeddings=False,
        **{name: settings[name] for name in (*sizes, *scales)},
    )
    expected: Tensor = computed.pos_embedding.float()
    if table is None or (table.shape == expected.shape and torch.allclose(table.float(), expected, atol=0.01)):
        return expected  # half precision rounds the checkpoint's
    raise UserError(f"{MODEL}{POSITION_TABLE} is not the table that diffusers computes for this configuration")


def _read_text_encoder(folder: Path) -> tuple[Any, Any]:
    from transformers import T5EncoderModel, T5Tokenizer

    what = "of T5 and its tokenizer; give --text_encoder FOLDER, or none"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder {what}")
    if not any((folder / name).is_file() for name in TOKENIZERS):  # without one transformers makes an empty tokenizer
        raise UserError(f"{folder}: holds no {' or '.join(TOKENIZERS)}, is no folder {what}")
    try:
        return T5Tokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not readable as a folder {what} ({first_line(error)})") from None


def _check_text(encoder: Any, config: SATConfig) -> None:
    expected = config.required_network("modules.patch_embed_config.params.text_hidden_size")
    if encoder is not None and encoder.config.d_model != expected:
        found = f"the text encoder's states have {encoder.config.d_model} channels, the transformer takes {expected}"
        raise UserError(f"{found}; give its own --text_encoder FOLDER, or none")
