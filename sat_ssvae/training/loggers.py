"""Loggers: TensorBoard's event files and Weights & Biases, which get the same values.

loggers: list[Logger] = [TensorBoard(run / "tensorboard", start), WeightsAndBiases(run, "my_project", settings)]
for one in loggers:
    one.scalars(step, {"train/error": 0.1})
"""

import abc
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import imageio.v3 as imageio
import numpy as np

from ..errors import UserError, one_line
from ..storage import write_text

logger = logging.getLogger(__name__)

ID_FILE = "wandb_id"
CONNECT_SECONDS = 60
"""How long Weights & Biases may keep the first rank waiting: for an answer at the start, for uploads at the end."""
FLUSH_SECONDS = 5
"""A value is visible in TensorBoard after at most this many seconds."""


class EvaluationPictures(NamedTuple):
    """Held-out clips above their reconstructions."""

    grid: np.ndarray
    """Some frames side by side, uint8 `H W C`."""
    frames: np.ndarray
    """All of them, uint8 `T H W C`."""
    video: Path
    """The same as an mp4."""
    fps: float
    """Its rate."""


class Logger(abc.ABC):
    """Logs a run's values. It must never stop training: after its first failure it warns once and does nothing."""

    title: str
    _sink: Any = None
    """The writer or run of the logging library; None once it has failed."""

    @abc.abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers; their names have the form group/name."""

    @abc.abstractmethod
    def pictures(self, step: int, pictures: EvaluationPictures) -> None:
        """Log reconstructions."""

    @abc.abstractmethod
    def close(self) -> None:
        """Write or upload what is pending."""

    def _send(self, send: Callable[[Any], object]) -> None:
        if self._sink is not None:
            with self._going_on():
                send(self._sink)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._sink = None
            logger.warning("%s failed, training continues without it (%s)", self.title, one_line(error))


class _EventFile:
    """An event file for tensorboardX's writer thread, with the interface of its S3 and GCS files.

    An error would end that thread, nothing would empty its queue, and training or the end of the process would
    wait forever. So an error is kept for `check` instead, and later values are dropped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error of an earlier write, if there was one."""
        if self._error is not None:
            raise self._error

    def directory_check(self, _path: str) -> None:
        with self._keeping_errors():
            self._folder.mkdir(parents=True, exist_ok=True)

    def open(self, path: str) -> "_EventFile":
        """Open the file of that name in the folder."""
        with self._keeping_errors():
            self._file = (self._folder / path.rpartition("/")[2]).open("wb")
        return self

    def write(self, data: bytes) -> None:
        self._on_file(lambda file: file.write(data))

    def flush(self) -> None:
        self._on_file(lambda file: file.flush())

    def close(self) -> None:
        """Close the file."""
        self._on_file(lambda file: file.close())

    def _on_file(self, work: Callable[[IO[bytes]], object]) -> None:
        with self._keeping_errors():
            if self._file is not None:
                work(self._file)

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error, self._file = self._error or error, None


class TensorBoard(Logger):
    """Event files in `folder`; values that an earlier process wrote beyond step `start` are not shown.

    Raises:
        UserError: tensorboardX is missing.
    """

    title = "TensorBoard"

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from tensorboardX import SummaryWriter
            from tensorboardX.record_writer import REGISTERED_FACTORIES, register_writer_factory
        except ImportError as error:
            raise UserError(f"monitor.tensorboard needs `pip install tensorboardX` ({error})") from None
        self._file = _EventFile(folder)
        kind = f"file{id(self._file)}"
        with self._going_on():
            register_writer_factory(kind, self._file)
            try:
                self._sink = SummaryWriter(
                    f"{kind}:{folder}",
                    purge_step=start + 1,
                    max_queue=0,  # unlimited: training never waits for room
                    flush_secs=FLUSH_SECONDS,
                    filename_suffix=f".{time.time_ns()}",  # a second process may start within the same second
                )
            finally:
                del REGISTERED_FACTORIES[kind]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Logger`."""
        self._send(lambda writer: [writer.add_scalar(name, value, step) for name, value in values.items()])

    def pictures(self, step: int, pictures: EvaluationPictures) -> None:
        """As `Logger`; the video is a GIF, the one moving picture that TensorBoard shows."""
        from tensorboardX.proto.summary_pb2 import Summary

        height, width, channels = pictures.frames.shape[1:]
        duration = round(1000 / pictures.fps)
        gif = bytes(imageio.imwrite("<bytes>", pictures.frames, extension=".gif", duration=duration, loop=0))
        moving = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
        video = Summary(value=[Summary.Value(tag="heldout/video", image=moving)])
        grid = pictures.grid
        self._send(lambda writer: writer.add_image("heldout/reconstructions", grid, step, dataformats="HWC"))
        self._send(lambda writer: writer.file_writer.add_summary(video, step))

    def close(self) -> None:
        """As `Logger`."""
        self._send(lambda writer: writer.close())
        self._send(lambda _writer: None)  # reports an error of closing
        self._sink = None

    def _send(self, send: Callable[[Any], object]) -> None:
        def checked(writer: Any) -> None:
            self._file.check()
            send(writer)

        super()._send(checked)


class WeightsAndBiases(Logger):
    """A run of Weights & Biases, which is resumed when the training continues: its id is kept in the run's folder.

    WANDB_MODE, WANDB_ENTITY, WANDB_BASE_URL and so on have their usual meaning. Without a key or an answer from the
    server it logs offline, for `wandb sync` later. Steps that are repeated after a crash are logged again.

    The run is named after its folder `output`; `settings` are shown beside it.
    """

    title = "Weights & Biases"

    def __init__(self, output: Path, project: str, settings: Mapping[str, Any]) -> None:
        with self._going_on():
            self._sink = _wandb_run(output, project, settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Logger`."""
        self._log(step, values)

    def pictures(self, step: int, pictures: EvaluationPictures) -> None:
        """As `Logger`."""
        with self._going_on():
            from wandb import Image as WandbImage
            from wandb import Video

            grid, video = WandbImage(pictures.grid), Video(str(pictures.video), format="mp4")
            self._log(step, {"heldout/reconstructions": grid, "heldout/video": video})

    def close(self) -> None:
        """As `Logger`; uploads that take too long are left to `wandb sync`."""
        self._send(lambda run: run.finish())

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._send(lambda run: run.log({**values, "step": step}))


def _wandb_run(output: Path, project: str, settings: Mapping[str, Any]) -> Any:
    """Begin the run or continue it; None if wandb is not installed."""
    try:
        import wandb
    except ImportError as error:
        logger.warning("monitor.wandb_project has no effect without wandb: `pip install wandb` (%s)", error)
        return None
    quiet = wandb.Settings(
        silent=True,  # its banner would break the progress bar
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
            # Otherwise login() prompts for a key.
            run = begin(mode="online" if wandb.login(prompt=False) else "offline")
        except wandb.Error as error:
            logger.warning("Weights & Biases does not answer, logging offline (%s)", one_line(error))
            run = begin(mode="offline")
    else:
        run = begin()
    run.define_metric("*", step_metric="step")
    if not run.disabled:
        logger.info("Weights & Biases: %s", run.url or f"offline, `wandb sync {Path(run.dir).parent}` uploads it")
    return run


def _kept_id(path: Path) -> str:
    """The id of the run that this folder logs to; made up if there is none yet."""
    kept = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if not kept:
        kept = secrets.token_hex(4)
        write_text(path, kept)
    return kept
