"""Which clips are read, and how: the configuration of everything that reads shards."""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from ..addresses import without_secrets
from ..config import Config

Place = str | tuple[str, ...]
Size = tuple[int, int]


class AnyOf(Config):
    """A filter for a field that is not a number."""

    any_of: tuple[str | bool | int, ...] = Field(min_length=1)
    """Values that a sample may have; a sample without the field is left out."""


Range = tuple[float | None, float | None]
Filters = dict[str, Range | AnyOf]


class SourceConfig(Config):
    """One of several sources of clips; what is not given is as in `data`. A batch comes from one source."""

    path: Place
    """As in `data`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the batches that come from here, relative to the other sources' weights."""
    num_frames: int | None = None
    """As in `data`; 1 reads images."""
    fps: float | None = None
    """As in `data`."""
    resolution: int | Size | None = None
    """As in `data`; replaces its buckets."""
    filters: Filters = Field(default_factory=dict)
    """Added to those of `data`."""
    batch_size: int | None = Field(default=None, gt=0)
    """Clips in a batch from here."""


class DataConfig(Config):
    """Which clips to read, and how."""

    path: Place = ()
    """A folder of .tar shards or of videos, a .tar, an address of shards (s3://), an http(s):// or pipe: one of a .tar,
    a pattern (a-{000..099}.tar), or a list of these."""
    num_frames: int = Field(default=17, ge=1)
    """Frames in a clip, 4k + 1; 1 reads images and single frames."""
    fps: float = Field(default=8.0, gt=0, le=240)
    """Frames per second of a clip; videos slower than this are left out."""
    resolution: int | Size = 256
    """Pixels, one number or [height, width]; frames are scaled to cover it and cropped at the centre."""
    enlarge: bool = False
    """Scale up what is smaller than `resolution`, as CogVideoX's own data set does, instead of leaving it out."""
    filters: Filters = Field(default_factory=dict)
    """Meta field: [lowest, highest], with null for an open end, or {any_of: [...]}. Samples without the field, or
    outside the range, are left out."""
    part: Literal["all", "train", "heldout"] = "all"
    """all samples; or, by a hash of their names, train: nine tenths of them, or heldout: the other tenth."""
    shuffle_shards: int = Field(default=64, gt=0)
    """Number of shards whose samples are shuffled together; with fewer, reads are more sequential."""
    num_workers: int = Field(default=1, ge=0)
    """Processes that decode; 0 decodes in the calling process."""

    sources: tuple[SourceConfig, ...] = ()
    """Several sources instead of `path`, such as videos with weight 7 and images with weight 1."""
    buckets: tuple[Size, ...] = ()
    """Sizes [height, width] instead of `resolution`: a sample is cut to the one whose aspect ratio is nearest to its
    own and that it has the pixels for. All clips of a batch have one size."""
    drop_black: float = Field(default=0.0, ge=0, le=1)
    """Clips of which no frame is brighter than this on average (0 black, 1 white) are left out; 0 keeps all."""
    drop_frozen: float = Field(default=0.0, ge=0, le=1)
    """Clips whose frames differ from the one before by less than this on average are left out; 0 keeps all."""
    max_skip_share: float = Field(default=0.1, ge=0, le=1)
    """Share of unusable clips above which reading stops."""
    cache: str | None = None
    """Folder for downloaded shards; null for shards/ in the package's cache."""
    cache_gib: float = Field(default=0.0, ge=0)
    """Size of that folder in GiB, beyond which the least recently used shards are removed; 0 keeps all."""

    @field_validator("num_frames")
    @classmethod
    def _causal_frames(cls, value: int) -> int:
        if value % 4 != 1:
            raise ValueError(f"must be 4k + 1, for example {value // 4 * 4 + 1}")
        return value

    @field_validator("resolution")
    @classmethod
    def _positive(cls, value: int | Size) -> int | Size:
        if min((value,) if isinstance(value, int) else value) <= 0:
            raise ValueError("must be positive")
        return value

    @model_validator(mode="after")
    def _there_is_a_source(self) -> "DataConfig":
        if bool(self.path) == bool(self.sources):
            raise ValueError("give either `path` or `sources`")
        if any(min(size) <= 0 for size in self.buckets):
            raise ValueError("buckets: sizes must be positive")
        for stream in self.streams() if self.sources else ():
            type(self).model_validate(stream.config.model_dump())  # the ranges that a source's own values must keep
        return self

    @property
    def size(self) -> Size:
        """(height, width)."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All (height, width) that clips of `path` may have."""
        return self.buckets or (self.size,)

    @property
    def shown_path(self) -> str:
        """`path` for messages."""
        return without_secrets(self.path)

    @property
    def span(self) -> float:
        """Seconds from a clip's first frame to its last."""
        return (self.num_frames - 1) / self.fps

    def streams(self) -> tuple["StreamConfig", ...]:
        """The sources, each with a configuration of its own; `path` alone is one."""
        return tuple(self._stream(source) for source in self.sources) or (StreamConfig(self, 1.0, None),)

    def _stream(self, source: SourceConfig) -> "StreamConfig":
        own = {
            name: value
            for name in ("path", "num_frames", "fps", "resolution")
            if (value := getattr(source, name)) is not None
        }
        own |= {"sources": (), "filters": {**self.filters, **source.filters}}
        if source.resolution is not None:
            own["buckets"] = ()
        return StreamConfig(self.model_copy(update=own), source.weight, source.batch_size)


class StreamConfig(NamedTuple):
    """A source: what to read, its weight, and its batch size where it has its own."""

    config: DataConfig
    weight: float
    batch_size: int | None


@lru_cache(maxsize=1024)  # a million videos have few sizes
def nearest_bucket(height: int, width: int, sizes: tuple[Size, ...]) -> Size:
    """The size of nearest aspect ratio (the larger of two alike) among those that a sample covers, else of all."""
    covered = [size for size in sizes if height >= size[0] and width >= size[1]] or list(sizes)

    def distance(size: Size) -> float:
        # A meta file may say 0 pixels, which is left out as too small.
        return round(abs(math.log(size[0] * max(width, 1) / (size[1] * max(height, 1)))), 6)

    return min(covered, key=lambda size: (distance(size), -size[0] * size[1]))
