"""The configuration of one run of `sat-ssvae train`."""

from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..data.shards import DataConfig
from ..engine.optimization import OptimizerConfig
from ..metrics.perceptual import MIN_SIZE as PERCEPTUAL_MIN_SIZE
from ..vae.config import SSVAEConfig
from .discriminator import AdversarialConfig
from .monitor import MonitorConfig
from .objective_config import ObjectiveConfig


class TrainConfig(ObjectiveConfig):
    """One run of `sat-ssvae train`: the objective's settings and these."""

    short_names: ClassVar = MappingProxyType({"channels": "model.latent_channels", "resolution": "data.resolution"})

    batch_size: int = Field(default=8, gt=0)
    """Videos per step and process."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    max_steps: int = Field(default=150_000, gt=0)
    """Steps of the autoencoder."""
    model: SSVAEConfig = SSVAEConfig()
    """Sizes of the network; `channels` at the top level is short for `model.latent_channels`."""
    data: DataConfig
    """The clips; `resolution` at the top level is short for `data.resolution`."""
    resume_from: str | None = None
    """Weights to start from: the `latest.pth` or `vae` of an earlier stage, or a published file. An interrupted run
    continues from its own checkpoint instead."""
    freeze_encoder: bool = False
    """Train the decoder and the mask token only. KL and LCR, which act on the encoder, then have no effect."""

    adversarial: AdversarialConfig = AdversarialConfig()
    """The discriminators; weight 0 (the default) turns them off."""
    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=1000)
    """AdamW and DeepSpeed; its learning rate is `lr` above."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """EMA decay per step; the averaged weights are then what the run hands over. 0 turns it off."""
    seed: int = Field(default=0, ge=0)
    """Initial weights, order of the clips, posterior samples and masks."""

    memory: Literal["auto", "fast", "small"] = "auto"
    """Take the whole batch at once and keep all activations (`fast`), or one sample at a time and compute activations
    again (`small`); `auto` is the fastest of these and two ways between them that fits into the device's memory. The
    gradients are the same."""
    log_every: int = Field(default=50, gt=0)
    """Steps between rows of train.csv."""
    checkpoint_every: int = Field(default=1000, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=1, gt=0)
    """How many of the newest checkpoints are kept."""
    milestone_every: int = Field(default=0, ge=0)
    """Checkpoints at multiples of this step are kept forever; 0 keeps none."""
    max_skipped_steps: int = Field(default=10, gt=0)
    """Steps in a row without a finite loss and gradient after which training stops."""

    monitor: MonitorConfig = MonitorConfig()
    """How the training is monitored."""

    @property
    def batches_per_step(self) -> int:
        """Batches that each process takes per step of the autoencoder."""
        turns = 2 if self.adversarial.weight and self.adversarial.alternate else 1
        return turns * self.optimizer.accumulation_steps

    @model_validator(mode="before")
    @classmethod
    def _expand_short_names(cls, values: Any) -> Any:
        """Put `channels` and `resolution` where they belong."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for short, full in cls.short_names.items():
            section, _, name = full.partition(".")
            if short in values:
                value, inner = values.pop(short), dict(values.get(section) or {})
                if inner.setdefault(name, value) != value:
                    raise ValueError(f"`{short}` and `{section}.{name}` differ; give one of them")
                values[section] = inner
        return values

    @model_validator(mode="after")
    def _values_fit(self) -> "TrainConfig":
        if "lr" in self.optimizer.model_fields_set and self.optimizer.lr != self.lr:
            raise ValueError("`lr` and `optimizer.lr` differ; give `lr` alone")
        if self.optimizer.min_lr > self.lr:
            raise ValueError(f"optimizer.min_lr = {self.optimizer.min_lr:g} is above lr = {self.lr:g}")
        if self.monitor.every and not self.monitor.path and self.data.part != "train":
            raise ValueError("monitor.path must name held-out clips, or data.part=train set a tenth of them aside")
        smallest = min(min(size) for stream in self.data.streams() for size in stream.config.sizes)
        if self.adversarial.weight and smallest < self.adversarial.min_size:
            raise ValueError(
                f"adversarial.num_layers = {self.adversarial.num_layers} needs a resolution of at least "
                f"{self.adversarial.min_size}, found {smallest}"
            )
        shrunk = smallest // max(self.scale.factors)
        if self.scale_weight and self.reconstruction.perceptual_weight and shrunk < PERCEPTUAL_MIN_SIZE:
            raise ValueError(
                f"scale.factors = {list(self.scale.factors)} shrinks videos to {shrunk} px, and a perceptual distance "
                f"needs {PERCEPTUAL_MIN_SIZE}; choose smaller factors or a larger resolution"
            )
        return self
