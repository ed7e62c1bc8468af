"""Settings of the autoencoder's training objective, see `losses.py`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..config import Config
from ..engine.precision import Precision
from ..metrics.perceptual import PerceptualName
from ..spectral.correlation import Tiling
from ..spectral.masking import MaskKind

Ratio = Annotated[float, Field(ge=0, le=1)]
Extent = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]


class ReconstructionConfig(Config):
    """How a reconstruction is compared with the original, and how strongly the posterior is regularised."""

    error: Literal["l1", "mse"] = "l1"
    """Per-element error: |x - y| (published) or (x - y)^2 (article)."""
    perceptual: PerceptualName = "st-lpips-alex"
    """Network of the perceptual distance; its distance of a frame is added to the error of each of its elements."""
    perceptual_weight: float = Field(default=1.0, ge=0)
    """Weight of the perceptual distance against the error; 0 loads no network."""
    learned_variance: bool = True
    """Learn one log-variance l for the decoder: the error enters as error / exp(l) + l (published)."""
    kl_weight: float = Field(default=5e-4, ge=0)
    """Weight of the KL divergence against the error, both summed over the elements of a sample."""
    reduction: Literal["sum", "mean"] = "sum"
    """Sum error and KL over a sample's elements (published), or divide both by its number of video elements, which is
    the scale that a fixed `lcr_weight` such as the article's 0.1 is meant for."""


class LCRConfig(Config):
    """Local correlation regularisation. Its weight is `lcr_weight`, beside this section."""

    window: Extent = (2, 2, 2)
    """Latent positions (t, h, w) whose vectors are correlated with each other."""
    threshold: float = Field(default=0.75, gt=-1, le=1)
    """Correlation that is enough: the loss is relu(threshold - R); 1 gives the article's 1 - R."""
    tiling: Tiling = "tiled"
    """Windows side by side, or one starting at each position."""
    weighting: Literal["fixed", "gradient"] = "gradient"
    """Use the weight as it is, or times the ratio of the reconstruction's to LCR's gradient norm at the encoder's last
    convolution (published)."""


class LMRConfig(Config):
    """Latent masked reconstruction. Its ratio is `lmr_mask_ratio`, beside this section."""

    kind: MaskKind = "channel"
    """What is masked: whole channels, blocks of positions, or the last latent frames."""
    block: Extent = (1, 1, 1)
    """Size (t, h, w) of a block mask's blocks."""


class ScaleConfig(Config):
    """Scale equivariance. Its weight is `scale_weight`, beside this section."""

    factors: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(2,), min_length=1)
    """Factors by which height and width of latents and video shrink; one is drawn each step."""


class ObjectiveConfig(Config):
    """What is minimised, and in which precision."""

    lcr_weight: float = Field(default=0.1, ge=0)
    """Weight of local correlation regularisation; 0 turns it off."""
    lmr_mask_ratio: Ratio | dict[Ratio, Ratio] = 0.2
    """Share of the latents that LMR masks, or a table of shares and their probabilities; 0 turns it off."""
    scale_weight: float = Field(default=0.0, ge=0)
    """Weight of scale equivariance (Skorokhodov et al., arXiv 2502.14831) against the reconstruction term: shrunk
    latents, decoded, are compared with the shrunk video; 0 turns it off."""
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    """Error, perceptual distance and KL."""
    lcr: LCRConfig = LCRConfig()
    """How local correlation is measured and weighted."""
    lmr: LMRConfig = LMRConfig()
    """What is masked."""
    scale: ScaleConfig = ScaleConfig()
    """By how much latents shrink."""
    precision: Precision = "float32"
    """Precision of the convolutions; weights, losses and regularisers stay in float32. auto is bfloat16 where the
    device has instructions for it, and float32 elsewhere. float16 scales the loss by a power of two that adapts to the
    gradients."""

    @model_validator(mode="after")
    def _probabilities_sum_to_one(self) -> "ObjectiveConfig":
        table = self.lmr_mask_ratio
        if isinstance(table, dict) and abs(sum(table.values()) - 1) > 1e-6:
            raise ValueError("lmr_mask_ratio: the probabilities of a table {ratio: probability} must sum to 1")
        return self


def without_encoder_terms(config: ObjectiveConfig) -> ObjectiveConfig:
    """The configuration for a frozen encoder, in which LCR and scale equivariance have nothing to act on."""
    return config.model_copy(update={"lcr_weight": 0.0, "scale_weight": 0.0})
