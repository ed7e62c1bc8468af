"""Which items of a job to work on, and where: the settings that pack, check-data, stats and encode share."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ..config import Config


@dataclass(frozen=True, order=True)
class Part:
    """One of several disjoint parts of a job's items."""

    index: int
    """From 1 on."""
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """Part of the name of this part's files; empty if it is the whole job."""
        return f".part-{self.index}-of-{self.count}" if self.count > 1 else ""

    def takes(self, name: str) -> bool:
        """Whether an item is in this part: by a hash of its name, so the same on every machine."""
        return part_of(name, self.count) == self.index


def part_of(name: str, count: int) -> int:
    """The number (from 1 on) of the part that an item is in, of `count` parts."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count + 1


class JobConfig(Config):
    """Where the items are processed. None of this changes the result."""

    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine; ray: a Ray cluster (the extra `ray`)."""
    ray_address: str | None = Field(default=None, min_length=1)
    """`auto` for the cluster that this machine belongs to, or ray://HOST:10001; null starts Ray on this machine."""
    part: str = Field(default="1/1", pattern=r"^[1-9]\d*/[1-9]\d*$")
    """3/16 works on the third of 16 parts, for a SLURM array or several shells; the last step is `--merge`."""

    def model_post_init(self, _context: Any) -> None:
        """Check that the fields fit together."""
        if self.chosen_part.index > self.chosen_part.count:
            raise ValueError(f"part {self.part}: parts are counted from 1 to {self.chosen_part.count}")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("ray_address is for engine=ray")

    @property
    def chosen_part(self) -> Part:
        """`part` in numbers."""
        index, count = self.part.split("/")
        return Part(int(index), int(count))

    def identity(self, *unimportant: str) -> dict[str, Any]:
        """The settings that results depend on, for fingerprints: neither who works, nor the `unimportant` ones."""
        exclude: Any = {"data": {"num_workers"}, **dict.fromkeys((*JobConfig.model_fields, *unimportant), True)}
        return self.model_dump(mode="json", exclude=exclude)
