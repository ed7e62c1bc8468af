"""The autoencoder's training objective.

    total = reconstruction + kl_weight * KL + lcr_weight * relu(threshold - R) + scale_weight * rescaled
            [+ weight * adversarial]

Reconstruction is an L1 or squared error plus a perceptual distance, through LMR's masked latents; KL and LCR look at
the posterior itself, scale equivariance at its sample, before LMR masks it. Convolutions may run in bf16; every term is
computed in float32.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..engine.precision import autocast
from ..metrics.perceptual import build_perceptual, distances_and_gradient
from ..spectral.correlation import correlation_loss, local_correlation
from ..spectral.masking import apply_mask, draw_mask, draw_ratios
from ..spectral.rescaling import draw_factor, shrink
from ..vae.autoencoder import SSVAE
from ..vae.layers import CausalConv3d
from ..vae.posterior import Posterior
from .discriminator import Discriminator, generator_loss
from .gradients import balanced_weight, send_back, weight_gradient, with_gradients
from .objective_config import ObjectiveConfig

LCR_LIMIT = 1e8
"""Largest ratio of gradient norms (published)."""
ADVERSARIAL_LIMIT = 1e4
"""Likewise for the adversarial term, as in VQGAN."""


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
    rescaled: Tensor
    """Reconstruction term of shrunk latents against the shrunk video, unweighted; 0 without scale equivariance."""
    squared_error: Tensor
    """Mean (x - y)^2 over elements, whatever the error is."""


class _Judge(NamedTuple):
    """The discriminators, and the weight of their term (see `AdversarialConfig.weight`)."""

    critic: Discriminator
    weight: float


class _Encoded(NamedTuple):
    """The encoder's output for a batch."""

    moments: Tensor
    """`b 2c t h w`, float32; with a graph where the whole batch's activations are kept."""
    features: Tensor
    """Input of the convolution that made them, without a graph."""


class Objective(nn.Module):
    """The autoencoder with its training losses: what the DeepSpeed engine wraps.

    A step computes its gradients piece by piece along with its losses, so that the activations of one piece are freed
    before the next; the backward pass from the total then delivers the gradients. The pieces:

    1. Encode the batch. KL, LCR with its statistics, and the masks look at the moments of the whole batch.
    2. Decode, compare, and go back to the latents. The perceptual distance takes a few frames at a time and its
       gradient with respect to the reconstruction at once; the discriminators likewise.
    3. Go back from the latents, KL and LCR to the moments, and from there through the encoder.

    With `sample_by_sample`, 1 and 2 take one sample at a time, and 3 encodes each sample once more instead of keeping
    the activations of the whole batch (gradient caching, Gao et al., arXiv 2101.06983). The gradients are the same.
    """

    sample_by_sample = False
    """Whether encoder and decoder take one sample of the batch at a time."""

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
        """Weight that LCR had in the last step; it differs from `lcr_weight` when gradient-balanced."""
        self.applied_adversarial_weight: Tensor
        self.register_buffer("applied_adversarial_weight", torch.tensor(0.0), persistent=False)
        """Weight that the adversarial term had in the last step."""
        self.reconstruction: Tensor | None = None
        """The last reconstruction, detached float32 `B C T H W`, where discriminators were given."""

    def forward(
        self,
        video: Tensor,
        generator: torch.Generator,
        critic: Discriminator | None = None,
        adversarial_weight: float = 0.0,
        scale: float = 1.0,
    ) -> Losses:
        """Losses of a batch of videos `B C T H W` in [-1, 1].

        Args:
            video: the batch.
            generator: a CPU generator, for the posterior sample and the masks; seed it with rank and step.
            critic: the discriminators; the total then has an adversarial term.
            adversarial_weight: of that term, see `AdversarialConfig.weight`.
            scale: factor of the total before its backward pass, so that float16 can hold the gradients.
        """
        judge = None if critic is None else _Judge(critic, adversarial_weight)
        losses: list[Losses] = []

        def compute() -> Tensor:
            losses.append(self._step(video, generator, judge, scale))
            return losses[0].total

        total = with_gradients(self, compute, scale)
        return losses[0]._replace(total=total)

    @torch.no_grad()
    def reconstruct(self, video: Tensor, generator: torch.Generator) -> Tensor:
        """The reconstruction that `forward` compares with the video, `B C T H W` float32, without a gradient."""
        latents = self._mask(self._sample(self._encode(video, keep=False).moments, generator), generator)
        with self._autocast(video):
            return torch.cat([self.vae.decode(latents[part]) for part in self._parts(video)]).float()

    def _step(self, video: Tensor, generator: torch.Generator, judge: _Judge | None, scale: float) -> Losses:
        """The losses, after the backward passes of all pieces."""
        encoded = self._encode(video, keep=self._trains_encoder and not self.sample_by_sample)
        moments = encoded.moments.detach().requires_grad_(self._trains_encoder)
        sample = self._sample(moments, generator)
        latents = self._mask(sample, generator)
        seen = latents.detach().requires_grad_(latents.requires_grad)
        if judge is None:
            error, perceptual, squared = self._reconstruct(video, seen, scale)
            adversarial = video.new_zeros(())
        else:
            error, perceptual, squared, adversarial = self._reconstruct_judged(video, seen, judge, scale)
        if latents.requires_grad:
            # to the moments and the mask token
            send_back(latents, seen.grad, retain_graph=bool(self.config.scale_weight))
        rescaled = self._rescale(video, sample, generator, scale) if self.config.scale_weight else video.new_zeros(())

        config, logvar = self.config, self.logvar.squeeze()
        distance = error + config.reconstruction.perceptual_weight * perceptual
        nll = self._reduction(video) * (distance / logvar.exp() + logvar)
        if nll.requires_grad:
            (nll * scale).backward()  # to the log-variance: what it divides no longer has a graph
        kl = Posterior.from_moments(moments).kl().mean()
        weighted_kl = self._reduction(video) / video[0].numel() * config.reconstruction.kl_weight * kl
        correlation = local_correlation(Posterior.from_moments(moments).mean, config.lcr.window, config.lcr.tiling)
        lcr = correlation_loss(correlation, config.lcr.threshold)
        if self._trains_encoder:
            gradient = self._gradient_at_moments(
                moments, encoded, weighted_kl * scale, None if lcr is None else lcr * scale
            )
            self._backward_through_encoder(video, encoded, gradient)
        zero = video.new_zeros(())
        lcr, mean = zero if lcr is None else lcr, zero if correlation.mean is None else correlation.mean
        regularised = (lcr if self._balances_lcr else config.lcr_weight * lcr) + config.scale_weight * rescaled
        total = nll + weighted_kl + regularised + adversarial
        terms = (total, nll, error, perceptual, kl, lcr, mean, adversarial, rescaled, squared)
        return Losses(*(term.detach() for term in terms))

    @property
    def _trains_encoder(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vae.encoder.parameters())

    @property
    def _balances_lcr(self) -> bool:
        return bool(self.config.lcr_weight) and self.config.lcr.weighting == "gradient"

    def _reduction(self, video: Tensor) -> float:
        """Factor of the mean over a sample's elements."""
        return float(video[0].numel()) if self.config.reconstruction.reduction == "sum" else 1.0

    def _parts(self, video: Tensor) -> list[slice]:
        """The parts, of equal size, in which the batch is processed."""
        return [slice(i, i + 1) for i in range(len(video))] if self.sample_by_sample else [slice(None)]

    def _autocast(self, video: Tensor) -> torch.autocast:
        # A new context for each pass: weights that autocast cached without gradients must not be used with gradients.
        return autocast(video.device, self.config.precision)

    # --- encoder ------------------------------------------------------------------------------------------------------

    def _encode(self, video: Tensor, keep: bool) -> _Encoded:
        """Moments and features of the batch; keep: the activations for a backward pass from the moments."""
        encoder, features, moments = self.vae.encoder, [], []
        with torch.set_grad_enabled(keep), self._autocast(video):
            for part in self._parts(video):
                features.append(encoder.features(video[part]))
                moments.append(encoder.moments(features[-1]).float())
        return _Encoded(torch.cat(moments), torch.cat(features).detach())

    def _sample(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        posterior = Posterior.from_moments(moments)
        eps = torch.randn(posterior.mean.shape, generator=generator).to(moments.device, non_blocking=True)
        return posterior.mean + posterior.std * eps

    def _mask(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """The latents, partly hidden by LMR."""
        config = self.config
        if not config.lmr_mask_ratio:
            return latents
        ratios = draw_ratios(config.lmr_mask_ratio, len(latents), generator)
        mask = draw_mask(config.lmr.kind, latents.shape, ratios, config.lmr.block, generator=generator)
        return apply_mask(latents, mask, self.vae.mask_token)

    def _gradient_at_moments(self, moments: Tensor, encoded: _Encoded, kl: Tensor, lcr: Tensor | None) -> Tensor:
        """The gradient of the total at the moments, where that of the reconstruction term has already arrived."""
        main, weight = moments.grad, self.config.lcr_weight
        assert main is not None
        regularised = torch.zeros_like(main)
        if lcr is not None and weight:
            (regularised,) = torch.autograd.grad(lcr, moments)
        if self._balances_lcr:
            last = self.vae.encoder.moments
            norms = [weight_gradient(last, encoded.features, gradient).norm() for gradient in (main, regularised)]
            self.applied_lcr_weight.copy_(balanced_weight(weight, norms[0], norms[1], LCR_LIMIT))
        return main + self.applied_lcr_weight * regularised + torch.autograd.grad(kl, moments)[0]

    def _backward_through_encoder(self, video: Tensor, encoded: _Encoded, gradient: Tensor) -> None:
        if not self.sample_by_sample:
            send_back(encoded.moments, gradient)
            return
        for part in self._parts(video):
            with self._autocast(video):
                moments = self.vae.encoder(video[part]).float()
            send_back(moments, gradient[part])

    # --- decoder ------------------------------------------------------------------------------------------------------

    def _reconstruct(self, video: Tensor, latents: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean error, perceptual distance and squared error, after the backward passes to decoder and latents."""
        parts, values = self._parts(video), []
        for part in parts:
            with self._autocast(video):
                reconstruction = self.vae.decode(latents[part])
            gradient, *compared = self._compare(reconstruction, video[part], scale / len(parts))
            send_back(reconstruction, gradient)
            values.append(torch.stack(compared))
        error, perceptual, squared = torch.stack(values).mean(0)
        return error, perceptual, squared

    def _reconstruct_judged(
        self, video: Tensor, latents: Tensor, judge: _Judge, scale: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `_reconstruct`, and the adversarial term.

        Its weight balances the gradient norms of the whole batch at the decoder's last convolution. Of several parts,
        all have to be decoded before it is known: each is decoded once more for its backward pass.
        """
        parts = self._parts(video)
        share = scale / len(parts)
        at_weight = video.new_zeros(2, *self.vae.decoder.last_layer.shape)
        gradients, values, rebuilt = [], [], []
        for part in parts:
            with torch.set_grad_enabled(len(parts) == 1):
                reconstruction, features = self._decode(latents[part])
            rebuilt.append(reconstruction.detach().float())
            main, *compared = self._compare(reconstruction, video[part], share)
            regularised, adversarial = self._judge(rebuilt[-1], judge.critic, share)
            gradients.append((main, regularised.to(main.dtype)))
            values.append(torch.stack([*compared, adversarial]))
            last = cast(CausalConv3d, self.vae.decoder.out[2])
            at_weight += torch.stack([weight_gradient(last, features, gradient) for gradient in gradients[-1]])
            del features  # as large as the widest activations
        norms = at_weight.flatten(1).norm(dim=1)
        self.applied_adversarial_weight.copy_(balanced_weight(judge.weight, norms[0], norms[1], ADVERSARIAL_LIMIT))
        for part, (main, regularised) in zip(parts, gradients, strict=True):
            if len(parts) > 1:
                reconstruction, _ = self._decode(latents[part])
            send_back(reconstruction, main + self.applied_adversarial_weight.to(main.dtype) * regularised)
        self.reconstruction = torch.cat(rebuilt)
        error, perceptual, squared, adversarial = torch.stack(values).mean(0)
        return error, perceptual, squared, adversarial

    def _rescale(self, video: Tensor, sample: Tensor, generator: torch.Generator, scale: float) -> Tensor:
        """The term of scale equivariance, after its backward passes to decoder and latents."""
        config, parts, values = self.config, self._parts(video), []
        factor = draw_factor(config.scale.factors, generator)
        seen = sample.detach().requires_grad_(sample.requires_grad)
        for part in parts:
            latents, target = shrink(seen[part], video[part], factor)
            with self._autocast(video):
                reconstruction = self.vae.decode(latents)
            weight = config.scale_weight * self._reduction(video) / self._reduction(target) / len(parts)
            gradient, *compared = self._compare(reconstruction, target, scale * weight)
            send_back(reconstruction, gradient)
            values.append(torch.stack(compared))
        if sample.requires_grad:
            send_back(sample, seen.grad)
        error, perceptual, _ = torch.stack(values).mean(0)
        distance = error + config.reconstruction.perceptual_weight * perceptual
        return self._reduction(video) * distance / self.logvar.detach().exp().squeeze()

    def _decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and the input of the convolution that made it, without a graph."""
        decoder = self.vae.decoder
        hidden: list[Tensor] = []
        hook = decoder.up[-1].register_forward_hook(lambda _module, _inputs, output: hidden.append(output.detach()))
        with hook, self._autocast(latents):
            reconstruction = self.vae.decode(latents)
        with torch.no_grad(), self._autocast(latents):
            return reconstruction, F.silu(decoder.out[0](hidden[0]))

    def _compare(self, reconstruction: Tensor, video: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradient of `scale` times the reconstruction term; mean error, perceptual distance and squared error."""
        config = self.config.reconstruction
        seen = reconstruction.detach().float().requires_grad_()
        factor = scale * self._reduction(video) / self.logvar.detach().exp()
        difference = seen - video
        error = (difference.abs() if config.error == "l1" else difference.square()).mean()
        (error * factor).backward()
        gradient, perceptual = seen.grad, video.new_zeros(())
        assert gradient is not None
        if self.perceptual is not None:
            frames, originals = (rearrange(x, "b c t h w -> (b t) c h w") for x in (seen.detach(), video))
            weight = factor * config.perceptual_weight / len(frames)
            distances, at_frames = distances_and_gradient(self.perceptual, frames, originals, weight)
            perceptual = distances.mean()
            gradient += at_frames.unflatten(0, (len(video), -1)).transpose(1, 2)
        squared = difference.detach().square().mean()
        return gradient.to(reconstruction.dtype), error.detach(), perceptual, squared

    def _judge(self, reconstruction: Tensor, critic: Discriminator, scale: float) -> tuple[Tensor, Tensor]:
        """The gradient of `scale` times the adversarial term at the reconstruction, and the term."""
        seen = reconstruction.detach().requires_grad_()
        adversarial = generator_loss(critic(seen))
        (gradient,) = torch.autograd.grad(adversarial * scale, seen)
        return gradient, adversarial.detach()
