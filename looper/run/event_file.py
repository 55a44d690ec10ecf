"""A file of TensorBoard's events: whole records, none lost where there is no room for a while."""

import contextlib
import itertools
import os
import platform
import time
from pathlib import Path

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from looper.base.errors import first_line
from looper.base.lines import warn
from looper.base.shown_path import shown_path

FLUSH_SECONDS = 10.0
"""Between two times that what was added is given to the system, for a TensorBoard that looks on."""

MOST_WAITING = 1000
"""Events that are kept until the system has them."""

_COUNT = itertools.count()


class EventFile:
    """Events of one folder, which TensorBoard takes for a run.

    They are records of TensorFlow, which `tf.io.TFRecordWriter` writes, with the file names of TensorBoard. Where some
    cannot be written, what is torn is cut off, and all that the system did not have yet is written by `flush` or
    `close` when there is room, to another file.

    Args:
        folder: the directory; it is made.
        first_step: TensorBoard drops what earlier files have at this step and later.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> file = EventFile(folder, 0)
        >>> file.add(Event(step=3))
        >>> file.close()
        >>> [event.step for event in tf.compat.v1.train.summary_iterator(str(next(folder.iterdir())))]
        [0, 0, 3]
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder = folder.absolute()  # wherever the process goes
        self._start: int | None = first_step  # until a file has it
        self._next = first_step
        self._waiting: list[bytes] = []  # that the system may not have
        self._writer: tf.io.TFRecordWriter | None = None
        self._path: Path | None = None
        self._written = 0  # of those waiting, how many this file has
        self._whole = 0  # bytes of this file that the system has
        self._flushed = time.monotonic()
        self._failed = self._told = False

    def add(self, event: Event) -> None:
        """Adds an event."""
        self._waiting.append(event.SerializeToString())
        self._next = max(self._next, event.step + 1)
        if not self._failed:
            late = time.monotonic() - self._flushed > FLUSH_SECONDS or len(self._waiting) >= MOST_WAITING
            self._write(flush=late)

    def flush(self) -> None:
        """Gives the system all that was added; also what it did not take before."""
        self._failed = False
        if self._waiting:
            self._write(flush=True)

    def close(self) -> None:
        """Closes the file, with all in it that can be; `add` opens another one."""
        self.flush()
        if self._waiting:
            warn(f"{len(self._waiting)} events of TensorBoard are lost: {shown_path(self._folder)} took none.")
            self._waiting = []
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(tf.errors.OpError):
                writer.close()

    def _write(self, flush: bool) -> None:
        try:
            if self._writer is None:
                self._open()
            for event in self._waiting[self._written :]:
                self._writer.write(event)
                self._written += 1
            if flush:
                self._writer.flush()
                self._whole = self._path.stat().st_size
                self._waiting, self._written, self._flushed = [], 0, time.monotonic()
                self._start = None
        except (OSError, tf.errors.OpError) as error:
            self._give_up(error)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}.{next(_COUNT)}"
        self._path, self._written, self._whole = self._folder / name, 0, 0
        self._writer = tf.io.TFRecordWriter(str(self._path))
        now = time.time()
        self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        # in each file: a loader of TensorBoard's passes over the first of a run
        start = SessionLog(status=SessionLog.START)
        step = self._next if self._start is None else self._start
        self._writer.write(Event(wall_time=now, step=step, session_log=start).SerializeToString())

    def _give_up(self, error: Exception) -> None:
        """Cuts off what the system has not taken whole; says so once."""
        self._failed = True
        writer, self._writer = self._writer, None
        with contextlib.suppress(OSError, tf.errors.OpError):
            if writer is not None:
                writer.close()
        with contextlib.suppress(OSError):
            if self._path is not None and self._whole:
                os.truncate(self._path, self._whole)
            elif self._path is not None:
                self._path.unlink()
        self._path, self._written = None, 0
        if not self._told:
            self._told = True
            warn(f"TensorBoard's events cannot be written ({first_line(error)}): points wait until they can.")
