"""Writes whole lines to stdout and stderr without ever making its caller wait.

A pipe that no process reads, a stopped terminal or a slow disk blocks a write for as long as it likes, and the event
loop with it. So each output has a thread of its own and a bounded queue: what does not fit is dropped, whole lines at a
time, and counted. `O_NONBLOCK` would not do: it belongs to the file description, which other processes share, and a
regular file ignores it.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import io
import logging
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

_log = logging.getLogger("gatekeeper.log")

# A reader that makes no progress for so long counts as stuck, and gets the smaller of the two queues.
_STUCK_SECONDS: Final = 0.5
_STUCK_BYTES: Final = 1 << 16
_MAX_BYTES: Final = 1 << 20
# Lines are collected for so long and written together: a thread that wakes more often takes time from the requests.
_COLLECT_SECONDS: Final = 0.1
_SECONDS_BETWEEN_NOTICES: Final = 10.0
# At the end of the process.
_DRAIN_SECONDS: Final = 5.0
_DRAIN_STUCK_SECONDS: Final = 1.0
# Writes up to this size to a pipe are not mixed with those of other processes.
_PIPE_CHUNK: Final = select.PIPE_BUF
_FILE_CHUNK: Final = 1 << 16
# Faults that pass: the part of a line that was written is finished later.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LineWriter:
    """The queue and the thread of one output. Its methods may be called from any thread; none waits or raises."""

    def __init__(self, fd: int | None, name: str) -> None:
        self.name = name
        self.dropped = 0
        # Whether the log's own lines go here too: then there is no other place to say that lines are dropped.
        self.has_log = False
        self._fd = fd
        self._is_pipe = fd is not None and stat.S_ISFIFO(os.fstat(fd).st_mode)
        # Reentrant: the garbage collector may log anything while it is held.
        self._lock = threading.RLock()
        self._queue: deque[bytes] = deque()
        self._pending_bytes = 0
        self._idle = True
        self._wake = threading.Lock()
        self._wake.acquire()
        self._hurry = threading.Event()
        self._progress_at = 0.0
        # What is left of a line of which a part is written.
        self._torn = b""
        self._fault = "" if fd is not None else "it is closed"
        self._dropped_because = ""
        self._reported = 0
        self._next_notice_at = 0.0
        if fd is not None:
            threading.Thread(target=self._run, name=f"gatekeeper-{name}", daemon=True).start()

    def __repr__(self) -> str:
        return f"<LineWriter {self.name} [{self._pending_bytes} bytes pending, {self.dropped} lines dropped]>"

    @property
    def pending(self) -> bool:
        return self._pending_bytes > 0

    @property
    def progress_at(self) -> float:
        """The monotonic time of the last write that returned."""
        return self._progress_at

    def write(self, lines: bytes) -> int:
        """Queue lines that are whole, or drop them all."""
        with self._lock:
            if self._fd is not None and self._has_room(len(lines)):
                self._queue.append(lines)
                self._pending_bytes += len(lines)
                if self._idle:
                    self._idle = False
                    self._wake.release()
                return len(lines)
        self._drop(lines, self._fault or "the reader is slow or gone")
        if not self.has_log:
            self._report_dropped()
        return len(lines)

    def flush(self) -> None:
        """Do nothing: lines are written soon. `drain` waits for them."""

    def hurry(self) -> None:
        """Write without collecting, and log now what was dropped since the last report: the process ends."""
        self._hurry.set()
        self._report_dropped()

    def _has_room(self, size: int) -> bool:
        size += self._pending_bytes
        if size <= _STUCK_BYTES or not self._pending_bytes:
            return True
        return size <= _MAX_BYTES and time.monotonic() - self._progress_at < _STUCK_SECONDS

    def _drop(self, lines: bytes | memoryview, because: str) -> None:
        with self._lock:
            self.dropped += bytes(lines).count(b"\n")
            self._dropped_because = because

    def _run(self) -> None:
        while True:
            self._wake.acquire(timeout=self._seconds_to_notice())
            self._progress_at = time.monotonic()
            while batch := self._take():
                self._write_batch(batch)
                self._report_dropped()
                self._hurry.wait(_COLLECT_SECONDS)
            self._report_dropped()

    def _take(self) -> bytes:
        with self._lock:
            batch = b"".join(self._queue)
            self._queue.clear()
            if not batch:
                self._idle = True
        return batch

    def _write_batch(self, batch: bytes) -> None:
        start = 0
        while start < len(batch):
            end = self._end_of_chunk(batch, start)
            self._write_chunk(memoryview(batch)[start:end])
            with self._lock:
                self._pending_bytes -= end - start
            start = end

    def _end_of_chunk(self, batch: bytes, start: int) -> int:
        """Return where to cut: behind as many whole lines as fit into a chunk, at least behind one."""
        size = _PIPE_CHUNK if self._is_pipe else _FILE_CHUNK
        if len(batch) - start <= size:
            return len(batch)
        return (batch.rfind(b"\n", start, start + size) + 1) or (batch.find(b"\n", start) + 1) or len(batch)

    def _write_chunk(self, chunk: memoryview) -> None:
        """Write whole lines, after what is left of a line that was begun. What cannot be written is dropped."""
        data = memoryview(self._torn + bytes(chunk))
        mid_line = bool(self._torn)
        self._torn = b""
        # Lines of several workers in one pipe, longer than what the kernel keeps together, would be mixed.
        locked = self._is_pipe and self._lock_file(fcntl.LOCK_EX)
        try:
            while data:
                try:
                    written = os.write(self._fd, data)  # type: ignore[arg-type]
                except BlockingIOError:
                    # Another process has made the file description that it shares with this one non-blocking.
                    self._await_room()
                    continue
                self._progress_at = time.monotonic()
                if written:
                    mid_line = data[written - 1] != ord("\n")
                    data = data[written:]
            self._fault = ""
        except OSError as error:
            self._fault = error.strerror or str(error)
            if mid_line and error.errno in _FULL:
                end = bytes(data).find(b"\n") + 1
                self._torn, data = bytes(data[:end]), data[end:]
            self._drop(data, self._fault)
        finally:
            if locked:
                self._lock_file(fcntl.LOCK_UN)

    def _lock_file(self, how: int) -> bool:
        with suppress(OSError):
            fcntl.lockf(self._fd, how)  # type: ignore[arg-type]
            return True
        return False

    def _await_room(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)  # type: ignore[arg-type]
        poll.poll(1000)
        # A pipe may be writable and have less room than a line needs.
        time.sleep(0.001)

    def _seconds_to_notice(self) -> float:
        if self.dropped == self._reported or (self._fault and self.has_log):
            return -1
        return max(0.0, self._next_notice_at - time.monotonic())

    def _report_dropped(self) -> None:
        """Log that lines were dropped, at most every ten seconds, as soon as the log can be written."""
        with self._lock:
            number = self.dropped - self._reported
            now = time.monotonic()
            early = now < self._next_notice_at and not self._hurry.is_set()
            if not number or early or (self._fault and self.has_log):
                return
            self._reported += number
            self._next_notice_at = now + _SECONDS_BETWEEN_NOTICES
        _log.warning("log lines dropped: %s (%s)", self.name, self._dropped_because, extra={"lines": number})


class LineStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr`, on a `LineWriter`."""

    def __init__(self, writer: LineWriter, fd: int | None) -> None:
        self.buffer = writer
        self._fd = fd
        self._partial = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._fd is not None and os.isatty(self._fd)

    def fileno(self) -> int:
        if self._fd is None:
            raise io.UnsupportedOperation("fileno")
        return self._fd

    def write(self, text: str) -> int:
        whole, newline, rest = (self._partial + text).rpartition("\n")
        self._partial = rest
        if newline:
            self.buffer.write(f"{whole}\n".encode("utf-8", "backslashreplace"))
        return len(text)


_writers: list[LineWriter] = []


def redirect_output() -> None:
    """Replace `sys.stdout` and `sys.stderr`: from now on nothing that Python code writes there waits.

    Where both are one file, one thread writes both, so that no line is torn. Does nothing the second time.
    """
    if _writers:
        return
    known: dict[tuple[int, int], LineWriter] = {}
    for name in ("stdout", "stderr"):
        fd = _fd_of(getattr(sys, name))
        status = os.fstat(fd) if fd is not None else None
        identity = (status.st_dev, status.st_ino) if status is not None else (-1, -len(known))
        if (writer := known.get(identity)) is None:
            writer = known[identity] = LineWriter(fd, name)
        elif writer.name != name:
            writer.name = f"{writer.name} and {name}"
        writer.has_log = name == "stderr"
        setattr(sys, name, LineStream(writer, fd))
    _writers.extend(known.values())
    atexit.register(drain)


def _fd_of(stream: Any) -> int | None:
    """Return the file descriptor; None for a stream that was closed before the process started."""
    if stream is None:
        return None
    stream.flush()
    return int(stream.fileno())


def drain(writers: Iterable[LineWriter] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Wait until everything is written: five seconds at most, and one second for a reader that takes nothing."""
    waiting = list(_writers if writers is None else writers)
    began = clock()
    for writer in waiting:
        writer.hurry()
    while clock() - began < _DRAIN_SECONDS:
        waiting = [
            writer
            for writer in waiting
            if writer.pending and clock() - max(began, writer.progress_at) < _DRAIN_STUCK_SECONDS
        ]
        if not waiting:
            return
        time.sleep(0.002)


def dropped_lines() -> int:
    """Return how many lines of this process were dropped."""
    return sum(writer.dropped for writer in _writers)
