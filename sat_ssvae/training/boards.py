"""Where a training can be watched from elsewhere: TensorBoard's event files and Weights & Biases, given the same.

boards: list[Board] = [TensorBoard(run / "tensorboard", start), WeightsAndBiases(run, "my_project", settings)]
for board in boards:
    board.scalars(step, {"train/error": 0.1})
"""

import contextlib
import io
import logging
import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ..errors import UserError

logger = logging.getLogger(__name__)

ID_FILE = "wandb_id"
CONNECT_SECONDS = 60
"""How long Weights & Biases may keep the first rank waiting: for an answer at the start, for uploads at the end."""


class Pictures(NamedTuple):
    """Held-out clips above their reconstructions."""

    grid: np.ndarray
    """Some frames side by side, uint8 `H W C`."""
    frames: np.ndarray
    """All of them, uint8 `T H W C`."""
    video: Path
    """The same as an mp4."""
    fps: float
    """Its rate."""


class Board(Protocol):
    """What both kinds do."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers; their names have the form group/name."""

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Show reconstructions."""

    def close(self) -> None:
        """Have everything where it belongs."""


class TensorBoard:
    """Event files in `folder`; what an earlier process wrote beyond step `start` is not shown.

    Raises:
        UserError: tensorboardX is missing.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(f"monitor.tensorboard needs `pip install tensorboardX` ({error})") from None
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Board`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Pictures) -> None:
        """As `Board`; the video is a GIF, the one moving picture that TensorBoard shows."""
        from tensorboardX.proto.summary_pb2 import Summary

        self._writer.add_image("heldout/reconstructions", pictures.grid, step, dataformats="HWC")
        height, width, channels = pictures.frames.shape[1:]
        gif = _gif(pictures.frames, pictures.fps)
        moving = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
        value = Summary.Value(tag="heldout/video", image=moving)
        self._writer.file_writer.add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        """As `Board`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, the same one again when the training continues: its id is kept in the run's folder.

    WANDB_MODE, WANDB_ENTITY, WANDB_BASE_URL and so on mean what they always do. Without a key or an answer from the
    server it logs offline, for `wandb sync` later. It is never worth a training: whatever fails in it is one warning,
    after which it is left alone. Steps that are taken again after a crash are logged again, at their old place.

    Args:
        output: the run's folder, which gives the run its name.
        project: where the run belongs.
        settings: the run's configuration, to be shown beside it.
    """

    def __init__(self, output: Path, project: str, settings: Mapping[str, Any]) -> None:
        self._run: Any = None
        with self._going_on():
            self._run = _wandb_run(output, project, settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Board`."""
        self._log(step, values)

    def pictures(self, step: int, pictures: Pictures) -> None:
        """As `Board`."""
        with self._going_on():
            from wandb import Image as WandbImage
            from wandb import Video

            grid, video = WandbImage(pictures.grid), Video(str(pictures.video), format="mp4")
            self._log(step, {"heldout/reconstructions": grid, "heldout/video": video})

    def close(self) -> None:
        """As `Board`; uploads that take too long are left to `wandb sync`."""
        if self._run is not None:
            with self._going_on():
                self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            with self._going_on():
                self._run.log({**values, "step": step})

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            logger.warning("Weights & Biases failed, training goes on without it (%s)", _one_line(error))


def _wandb_run(output: Path, project: str, settings: Mapping[str, Any]) -> Any:
    """Begin the run or continue it; None where wandb is not installed."""
    try:
        import wandb
    except ImportError as error:
        logger.warning("monitor.wandb_project has no effect without `pip install wandb` (%s)", error)
        return None
    quiet = wandb.Settings(
        silent=True,  # its greetings would tear the progress bar apart
        console="off",
        init_timeout=CONNECT_SECONDS,
        finish_timeout=CONNECT_SECONDS,
    )
    begin = partial(
        wandb.init,
        project=project,
        name=output.name,
        id=_kept_id(output / ID_FILE),
        resume="allow",
        dir=str(output),
        config=dict(settings),
        settings=quiet,
    )
    if wandb.setup(quiet).settings.mode in ("online", "run"):
        try:
            # It would wait for somebody to type a key.
            run = begin(mode="online" if wandb.login(prompt=False) else "offline")
        except wandb.Error as error:
            logger.warning("Weights & Biases does not answer, logging offline (%s)", _one_line(error))
            run = begin(mode="offline")
    else:
        run = begin()
    run.define_metric("*", step_metric="step")
    if not run.disabled:
        logger.info("Weights & Biases: %s", run.url or f"offline, `wandb sync {Path(run.dir).parent}` uploads it")
    return run


def _kept_id(path: Path) -> str:
    """The id of the run that this folder logs to, made up at the first time."""
    kept = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if not kept:
        kept = secrets.token_hex(4)
        path.write_text(kept, encoding="utf-8")
    return kept


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _gif(frames: np.ndarray, fps: float) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return file.getvalue()
