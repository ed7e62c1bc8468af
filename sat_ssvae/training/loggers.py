"""Where a training can be watched from elsewhere: TensorBoard's event files and Weights & Biases, given the same.

boards: list[Board] = [TensorBoard(run / "tensorboard", start), WeightsAndBiases(run, "my_project", settings)]
for board in boards:
    board.scalars(step, {"train/error": 0.1})
"""

import contextlib
import io
import logging
import secrets
import socket
import time
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


class _Expendable:
    """A board is never worth a training: whatever fails in it is one warning, after which it is left alone."""

    title: str
    _sink: Any = None
    """What takes the values; None once it has failed."""

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._sink = None
            logger.warning("%s failed, training goes on without it (%s)", self.title, _one_line(error))


class TensorBoard(_Expendable):
    """Event files in `folder`; what an earlier process wrote beyond step `start` is not shown.

    They are written at once. tensorboardX's own `SummaryWriter` leaves that to a thread: when it ends on a full disk,
    nothing empties its queue any more, and the training waits for ever for room in it.

    Raises:
        UserError: tensorboardX is missing.
    """

    title = "TensorBoard"

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from tensorboardX.proto.event_pb2 import SessionLog
            from tensorboardX.record_writer import RecordWriter
        except ImportError as error:
            raise UserError(f"monitor.tensorboard needs `pip install tensorboardX` ({error})") from None
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"  # TensorBoard reads them by name
        with self._going_on():
            folder.mkdir(parents=True, exist_ok=True)
            self._sink = RecordWriter(str(folder / name))
            self._write(
                {"file_version": "brain.Event:2"},
                {"step": start + 1, "session_log": SessionLog(status=SessionLog.START)},
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Board`."""
        from tensorboardX.summary import scalar

        self._write(*({"step": step, "summary": scalar(name, value)} for name, value in values.items()))

    def pictures(self, step: int, pictures: Pictures) -> None:
        """As `Board`; the video is a GIF, the one moving picture that TensorBoard shows."""
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import image

        grid = image("heldout/reconstructions", pictures.grid, dataformats="HWC")
        height, width, channels = pictures.frames.shape[1:]
        gif = _gif(pictures.frames, pictures.fps)
        moving = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
        video = Summary(value=[Summary.Value(tag="heldout/video", image=moving)])
        self._write({"step": step, "summary": grid}, {"step": step, "summary": video})

    def close(self) -> None:
        """As `Board`."""
        if self._sink is not None:
            with self._going_on():
                self._sink.close()

    def _write(self, *events: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._sink is not None:
            with self._going_on():
                for event in events:
                    self._sink.write(Event(wall_time=time.time(), **event).SerializeToString())
                self._sink.flush()


class WeightsAndBiases(_Expendable):
    """A run of Weights & Biases, the same one again when the training continues: its id is kept in the run's folder.

    WANDB_MODE, WANDB_ENTITY, WANDB_BASE_URL and so on mean what they always do. Without a key or an answer from the
    server it logs offline, for `wandb sync` later. Steps that are taken again after a crash are logged again, at their
    old place.

    Args:
        output: the run's folder, which gives the run its name.
        project: where the run belongs.
        settings: the run's configuration, to be shown beside it.
    """

    title = "Weights & Biases"

    def __init__(self, output: Path, project: str, settings: Mapping[str, Any]) -> None:
        with self._going_on():
            self._sink = _wandb_run(output, project, settings)

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
        if self._sink is not None:
            with self._going_on():
                self._sink.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._sink is not None:
            with self._going_on():
                self._sink.log({**values, "step": step})


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
