"""Encoder: video `B 3 T H W` to posterior moments `B 2c t h w` (mean and log-variance stacked on channels)."""

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from .config import SSVAEConfig
from .layers import CausalConv3d, Downsample, ResidualBlock, Stream, middle_blocks, output_layers


class EncoderLevel(nn.Module):
    """Residual blocks at one resolution, then a downsampling unless the level is the deepest."""

    def __init__(self, in_channels: int, channels: int, num_res_blocks: int, downsample: Downsample | None) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_res_blocks
        self.block = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.downsample = downsample

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        for block in self.block:
            x = block(x, stream)
        return x if self.downsample is None else self.downsample(x, stream)


class Encoder(nn.Module):
    """See `SSVAEConfig` for the sizes."""

    def __init__(self, config: SSVAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        self._unmerged_levels = [*config.temporal_downsample, True].index(True)
        self.conv_in = CausalConv3d(config.in_channels, config.base_channels)
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            downsample = None if last else Downsample(width, widths[level + 1], config.temporal_downsample[level])
            level_in = config.base_channels if level == 0 else width
            self.down.append(EncoderLevel(level_in, width, config.num_res_blocks, downsample))
        # The published encoder omits the attention after block `num_res_blocks - 1`, whatever num_mid_blocks is.
        attention_after = [i for i in range(config.num_mid_blocks) if i != config.num_res_blocks - 1]
        self.mid = middle_blocks(widths[-1], config.num_mid_blocks, attention_after)
        self.out = output_layers(widths[-1], 2 * config.latent_channels)

    @property
    def moments(self) -> CausalConv3d:
        """The last convolution, which makes the moments; LCR's weight is balanced at it."""
        return cast(CausalConv3d, self.out[2])

    def features(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """Everything before the last convolution."""
        h = self._every_frame(x, stream) if stream is None else stream.in_parts(self._every_frame, x)
        for level in self.down[self._unmerged_levels :]:
            h = level(h, stream)
        for block in self.mid:
            h = block(h, stream)
        norm, activation, _ = self.out
        return activation(norm(h))

    def _every_frame(self, x: Tensor, stream: Stream | None) -> Tensor:
        """The levels before the first halving of time."""
        h = self.conv_in(x, stream)
        for level in self.down[: self._unmerged_levels]:
            h = level(h, stream)
        return h

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        return self.moments(self.features(x, stream), stream)
