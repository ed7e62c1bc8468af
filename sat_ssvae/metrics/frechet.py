"""The Frechet video distance, for users who have the weights of its network.

    i3d = I3D(Path("i3d_torchscript.pt"), device)
    collector = ClipCollector(i3d, frames=17)
    collector.add(video)                        # B=1 3 T H W in [-1, 1], any number of frames at a time
    distance = frechet_distance(collector.features(), others)

FVD (Unterthiner et al., arXiv 1812.01717) compares the logits of an I3D trained on Kinetics-400. The file is the
TorchScript export that StyleGAN-V's metric made common; it is called as `i3d(x, rescale=False, resize=False,
return_features=True)` with x `B 3 T 224 224` in [-1, 1]. Frames are scaled to 224x224 bilinearly, without keeping their
aspect ratio, as in the original metric.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..storage import digest_of
from .intervals import QUANTILE
from .kernel_distance import checked_sets

SIDE = 224
MIN_FRAMES = 10
"""I3D's last pooling over time needs this many."""


class I3D:
    """The user's network.

    `path` is a TorchScript file.

    Raises:
        UserError: no such file, or not TorchScript.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        try:
            self.sha256 = digest_of(path)
            self._network = torch.jit.load(str(path), map_location=device).eval()
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
            raise UserError(f"{path}: not a TorchScript file of I3D ({reason})") from None

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Features (B, D), float32 on the CPU, of clips `B 3 T 224 224` in [-1, 1], T at least 10.

        Raises:
            UserError: the network cannot be called in this way, or returns something else.
        """
        try:
            features = self._network(clips.to(self.device), rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.path}: cannot be called as FVD's I3D is ({reason})") from None
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(clips):
            raise UserError(f"{self.path}: does not return one feature vector per clip, so it is not FVD's I3D")
        return features.float().cpu()


class ClipCollector:
    """Splits a video that arrives in pieces into consecutive clips, and collects their features.

    A clip has `frames`; an incomplete one at the end of the video is dropped.
    """

    def __init__(self, i3d: I3D, frames: int) -> None:
        self._i3d, self._frames = i3d, frames
        self._waiting = torch.empty(1, 3, 0, SIDE, SIDE)
        self._features: list[Tensor] = []

    def add(self, video: Tensor) -> None:
        """Add the next frames, `1 3 T H W`; values outside [-1, 1] are clipped."""
        frames = video[0].float().clamp(-1, 1).transpose(0, 1)
        scaled = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        self._waiting = torch.cat([self._waiting.to(scaled), scaled.transpose(0, 1)[None]], dim=2)
        while self._waiting.shape[2] >= self._frames:
            self._features.append(self._i3d(self._waiting[:, :, : self._frames]))
            self._waiting = self._waiting[:, :, self._frames :]

    def features(self) -> Tensor:
        """Of all clips so far, (n, D); (0, 0) if there is none."""
        return torch.cat(self._features) if self._features else torch.empty(0, 0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features (n, D) and (m, D), n and m at least 2.

    |mean difference|^2 + tr(Sx) + tr(Sy) - 2 tr((Sx Sy)^(1/2)), in float64. The last trace is the sum of the singular
    values of A B^T, where Sx = A^T A and Sy = B^T B: no square root of a matrix that is singular as soon as there are
    fewer clips than dimensions.

    Raises:
        UserError: fewer than two clips in a set, or features that are not finite.
        ValueError: the shapes do not fit.
    """
    x, y = checked_sets(x, y)
    roots = [torch.linalg.qr((z - z.mean(0)) / (len(z) - 1) ** 0.5, mode="r").R for z in (x, y)]
    means = (x.mean(0) - y.mean(0)).square().sum()
    traces = sum(root.square().sum() for root in roots)
    distance = means + traces - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return max(0.0, float(distance))  # rounding


def frechet_interval(x: Tensor, y: Tensor, *, seed: int = 0, resamples: int = 100) -> tuple[float, float]:
    """95 % interval (low, high) of `frechet_distance`: the estimate plus and minus `QUANTILE` standard deviations.

    `x` (n, D) and `y` (m, D) are features. The deviation is taken over bootstrap resamples of both sets; the interval
    does not include the upward bias of few clips. Clips must be independent. Equal seeds give equal intervals.

    Raises:
        UserError: as `frechet_distance`.
    """
    generator = torch.Generator().manual_seed(seed)
    estimate, distances = frechet_distance(x, y), []
    for _ in range(resamples):
        drawn = [z[torch.randint(len(z), (len(z),), generator=generator)] for z in (x, y)]
        distances.append(frechet_distance(*drawn))
    margin = QUANTILE * float(torch.tensor(distances, dtype=torch.float64).std())
    return max(0.0, estimate - margin), estimate + margin
