"""The autoencoder's training objective.

    total = reconstruction + kl_weight * KL + lcr_weight * relu(threshold - R) [+ weight * adversarial]

Reconstruction is an L1 or squared error plus a perceptual distance, through LMR's masked latents; KL and LCR look at
the posterior itself. Convolutions may run in bf16; every term is computed in float32.
"""

from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.grad
from pydantic import Field, model_validator
from torch import Tensor, nn

from .. import distributed
from ..config import Config
from ..engine.precision import Precision, autocast
from ..metrics.perceptual import PerceptualName, build_perceptual
from ..spectral.correlation import Tiling, correlation_loss, local_correlation
from ..spectral.masking import MaskKind, apply_mask, draw_mask, draw_ratios
from ..vae.autoencoder import SSVAE
from ..vae.layers import repeat_first_frame
from ..vae.posterior import Posterior
from .discriminator import Discriminator, generator_loss

LCR_LIMIT = 1e8
"""Largest ratio of gradient norms (published)."""
ADVERSARIAL_LIMIT = 1e4
"""Likewise for the adversarial term, as in VQGAN."""

Ratio = Annotated[float, Field(ge=0, le=1)]
Window = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]


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

    window: Window = (2, 2, 2)
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
    block: Window = (1, 1, 1)
    """Size (t, h, w) of a block mask's blocks."""


class ObjectiveConfig(Config):
    """What is minimised, and in which precision."""

    lcr_weight: float = Field(default=0.1, ge=0)
    """Weight of local correlation regularisation; 0 turns it off."""
    lmr_mask_ratio: Ratio | dict[Ratio, Ratio] = 0.2
    """Share of the latents that LMR masks, or a table of shares and their probabilities; 0 turns it off."""
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    """Error, perceptual distance and KL."""
    lcr: LCRConfig = LCRConfig()
    """How local correlation is measured and weighted."""
    lmr: LMRConfig = LMRConfig()
    """What is masked."""
    precision: Precision = "float32"
    """Precision of the convolutions; weights, losses and regularisers stay in float32. float16 scales the loss by a
    power of two that follows what the gradients bear."""

    @model_validator(mode="after")
    def _probabilities_sum_to_one(self) -> "ObjectiveConfig":
        table = self.lmr_mask_ratio
        if isinstance(table, dict) and abs(sum(table.values()) - 1) > 1e-6:
            raise ValueError("lmr_mask_ratio: the probabilities of a table {ratio: probability} must sum to 1")
        return self


class Losses(NamedTuple):
    """Scalars in float32; all but `total` are detached, for the log."""

    total: Tensor
    """Minimise this. Gradient-balanced terms (LCR, adversarial) are in it unweighted: their weight is applied in the
    backward pass."""
    nll: Tensor
    """The weighted reconstruction term as it enters the total."""
    error: Tensor
    """Mean |x - y| or (x - y)^2 over elements."""
    perceptual: Tensor
    """Mean perceptual distance of a frame."""
    kl: Tensor
    """KL divergence summed over a sample's latent elements, mean over samples."""
    lcr: Tensor
    """relu(threshold - R), unweighted."""
    correlation: Tensor
    """R, the mean local correlation of the posterior mean."""
    adversarial: Tensor
    """Minus the mean logit that the discriminators give the reconstruction, unweighted; 0 without them."""


class GradientBalance(torch.autograd.Function):
    """Weigh a regulariser by the ratio of gradient norms, within the one backward pass that training makes anyway.

    Both results are one tensor's two uses: `main` leads to the reconstruction term, `regularised` to the regulariser
    (LCR at the encoder's last convolution, the discriminators at the decoder's). By the time that backward gets here,
    the gradient of each with respect to that tensor is known, so their gradients at the weight of the causal
    convolution that made it out of `features` cost two small convolutions, and no second backward pass. The
    regulariser's gradient continues multiplied by

        w = weight * min(|g_main| / (|g_regularised| + 1e-4), limit)

    which is a constant for the derivative (published; VQGAN's adaptive weight, arXiv 2012.09841, eq. 7). `w` is
    written into `applied` for the log.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        output: Tensor,
        features: Tensor,
        weight_shape: torch.Size,
        weight: float,
        applied: Tensor,
        limit: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features)
        ctx.weight_shape, ctx.weight, ctx.applied, ctx.limit = weight_shape, weight, applied, limit
        return output.view_as(output), output.view_as(output)

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, main: Tensor, regularised: Tensor
    ) -> tuple[Tensor, None, None, None, None, None]:
        (features,) = ctx.saved_tensors
        inputs = repeat_first_frame(features, 2)
        if inputs.dtype == torch.float16:  # a sum over all positions, which float16 does not hold
            inputs = inputs.float()

        def norm(gradient: Tensor) -> Tensor:
            at_weight = torch.nn.grad.conv3d_weight(
                inputs, ctx.weight_shape, gradient.to(inputs.dtype), padding=(0, 1, 1)
            )
            return at_weight.float().norm()

        norms = distributed.mean_over_ranks(torch.stack([norm(main), norm(regularised)]))
        applied = ctx.weight * (norms[0] / (norms[1] + 1e-4)).clamp_max(ctx.limit)
        ctx.applied.copy_(applied)
        return main + applied * regularised, None, None, None, None, None


class Objective(nn.Module):
    """The autoencoder with its training losses: what the DeepSpeed engine wraps."""

    def __init__(self, vae: SSVAE, config: ObjectiveConfig) -> None:
        super().__init__()
        self.vae = vae
        self.config = config
        reconstruction = config.reconstruction
        # One element, not a scalar: DeepSpeed cannot broadcast tensors without dimensions.
        self.logvar = nn.Parameter(torch.zeros(1), requires_grad=reconstruction.learned_variance)
        weight = reconstruction.perceptual_weight
        self.perceptual = build_perceptual(reconstruction.perceptual) if weight else None
        self.applied_lcr_weight: Tensor
        self.register_buffer("applied_lcr_weight", torch.tensor(config.lcr_weight), persistent=False)
        """Weight that LCR had in the last backward pass; it differs from `lcr_weight` when gradient-balanced."""
        self.applied_adversarial_weight: Tensor
        self.register_buffer("applied_adversarial_weight", torch.tensor(0.0), persistent=False)
        """Weight that the adversarial term had in the last backward pass."""
        self.reconstruction: Tensor | None = None
        """The last reconstruction, detached float32 `B C T H W`, where discriminators were given."""

    def forward(
        self,
        video: Tensor,
        generator: torch.Generator,
        critic: Discriminator | None = None,
        adversarial_weight: float = 0.0,
    ) -> Losses:
        """Losses of a batch of videos `B C T H W` in [-1, 1].

        Args:
            video: the batch.
            generator: a CPU generator, for the posterior sample and the masks; seed it with rank and step.
            critic: the discriminators, whose judgement then is part of the total.
            adversarial_weight: of that part, see `AdversarialConfig.weight`.
        """
        with self._autocast(video):
            for_decoder, for_lcr, for_kl = self._encode(video)
            latents = self._sample(for_decoder, generator)
            if critic is None:
                reconstruction, adversarial = self.vae.decode(latents), video.new_zeros(())
            else:
                reconstruction, for_critic = self._decode_twice(latents, adversarial_weight)
                adversarial = generator_loss(critic(for_critic))
                self.reconstruction = for_critic.detach().float()
        with torch.autocast(video.device.type, enabled=False):
            return self._losses(video, reconstruction.float(), for_lcr, for_kl, adversarial)

    @torch.no_grad()
    def reconstruct(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """What `forward` compares with the video, `B C T H W` float32, without a gradient."""
        with self._autocast(video):
            moments = self.vae.encoder.moments(self.vae.encoder.features(video)).float()
            reconstruction: Tensor = self.vae.decode(self._sample(moments, generator))
        return reconstruction.float()

    def _sample(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        """Latents drawn from the posterior, partly hidden."""
        posterior = Posterior.from_moments(moments)
        eps = torch.randn(posterior.mean.shape, generator=generator).to(moments.device, non_blocking=True)
        return self._mask(posterior.mean + posterior.std * eps, generator)

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The posterior's moments for the reconstruction, for LCR, and for KL: equal in value, `b 2c t h w` float32.

        They differ in what happens to their gradients: see `GradientBalance`.
        """
        encoder = self.vae.encoder
        features = encoder.features(video)
        moments = encoder.moments(features).float()
        if self.config.lcr.weighting == "fixed" or not self.config.lcr_weight:
            return moments, moments, moments
        shape = encoder.moments.conv.weight.shape
        branches = GradientBalance.apply(
            moments, features.detach(), shape, self.config.lcr_weight, self.applied_lcr_weight, LCR_LIMIT
        )
        return *branches, moments

    def _decode_twice(self, latents: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """The reconstruction for the reconstruction term and for the discriminators: see `GradientBalance`."""
        last = self.vae.decoder.out[2]
        features: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0].detach()))
        with hook:
            reconstruction = self.vae.decode(latents)
        shape = self.vae.decoder.last_layer.shape
        applied = self.applied_adversarial_weight
        for_error, for_critic = GradientBalance.apply(
            reconstruction, features[0], shape, weight, applied, ADVERSARIAL_LIMIT
        )
        return for_error, for_critic

    def _mask(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """LMR: hide a part of each sample's latents."""
        config = self.config
        if not config.lmr_mask_ratio:
            return latents
        ratios = draw_ratios(config.lmr_mask_ratio, len(latents), generator)
        mask = draw_mask(config.lmr.kind, latents.shape, ratios, config.lmr.block, generator=generator)
        return apply_mask(latents, mask, self.vae.mask_token)

    def _reconstruction_terms(self, video: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted term, the mean error and the mean perceptual distance."""
        config = self.config.reconstruction
        difference = reconstruction - video
        error = difference.abs() if config.error == "l1" else difference.square()
        distance = video.new_zeros(len(video) * video.shape[2])
        if self.perceptual is not None:
            distance = self.perceptual(_frames(reconstruction), _frames(video))
        mean = error.mean() + config.perceptual_weight * distance.mean()
        logvar = self.logvar.squeeze()
        return mean / logvar.exp() + logvar, error.mean(), distance.mean()

    def _losses(
        self,
        video: Tensor,
        reconstruction: Tensor,
        for_lcr: Tensor,
        for_kl: Tensor,
        adversarial: Tensor,
    ) -> Losses:
        config = self.config
        mean_nll, error, perceptual = self._reconstruction_terms(video, reconstruction)
        elements = video[0].numel()
        kl = Posterior.from_moments(for_kl).kl().mean()
        scale = elements if config.reconstruction.reduction == "sum" else 1.0
        nll = scale * mean_nll
        total = nll + scale / elements * config.reconstruction.kl_weight * kl

        correlation = local_correlation(Posterior.from_moments(for_lcr).mean, config.lcr.window, config.lcr.tiling)
        lcr = correlation_loss(correlation, config.lcr.threshold)
        if lcr is not None and config.lcr_weight:
            balanced = config.lcr.weighting == "gradient"
            total = total + (lcr if balanced else config.lcr_weight * lcr)
        if adversarial.requires_grad:
            total = total + adversarial
        nothing = video.new_zeros(())
        mean_correlation = correlation.mean
        return Losses(
            total=total,
            nll=nll.detach(),
            error=error.detach(),
            perceptual=perceptual.detach(),
            kl=kl.detach(),
            lcr=nothing if lcr is None else lcr.detach(),
            correlation=nothing if mean_correlation is None else mean_correlation.detach(),
            adversarial=adversarial.detach(),
        )

    def _autocast(self, video: Tensor) -> torch.autocast:
        return autocast(video.device, self.config.precision)


def _frames(video: Tensor) -> Tensor:
    """`B C T H W` to `(B T) C H W`."""
    return video.transpose(1, 2).flatten(0, 1)
