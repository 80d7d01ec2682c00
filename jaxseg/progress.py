"""Progress lines with rate and time left, for terminals and for log files."""

import sys
import time


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Progress:
    """Short lines such as ``train  120/4000  3.1/s  0:00:41  left 0:20:52  loss 1.83``.

    A terminal shows one line that is rewritten; any other stream gets a new line every
    ``every_seconds``, so a short job prints its last line only. The rate leaves out everything
    before the first `update`, which is mostly compilation, and what was ``start``ed with, which an
    earlier run did.

    Values given to `update` are turned into floats only when a line is printed: handing in device
    arrays does not stall the device.
    """

    def __init__(
        self, total, label, every_seconds=5.0, *, start=0, stream=None, clock=time.monotonic
    ):
        self._total, self._label, self._clock = total, label, clock
        self._stream = sys.stdout if stream is None else stream
        self._terminal = self._stream.isatty()
        self._every = min(every_seconds, 0.5) if self._terminal else every_seconds
        self._begin = self._printed = clock()
        self._first = None  # (done, time) of the first update
        self._done, self._values = start, {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._print(self._clock(), last=True)

    def update(self, done: int, **values) -> None:
        """``done`` of ``total`` are done now; ``values`` are scalars worth showing."""
        now = self._clock()
        self._done, self._values = done, values
        if self._first is None:
            self._first = done, now
        if now - self._printed >= self._every:
            self._print(now, last=False)

    def _print(self, now, last):
        self._printed = now
        parts = [self._label, f"{self._done}/{self._total}"]
        rate = self._rate(now)
        if rate:
            parts.append(f"{rate:.3g}/s")
        parts.append(_clock(now - self._begin))
        if rate and self._done < self._total:
            parts.append(f"left {_clock((self._total - self._done) / rate)}")
        parts += [f"{name} {float(value):.4g}" for name, value in self._values.items()]
        line = "  ".join(parts)
        if self._terminal:
            line = f"\r\x1b[K{line}"  # back to the margin, clear the old line
        print(line, end="\n" if last or not self._terminal else "", file=self._stream, flush=True)

    def _rate(self, now):
        if self._first is None:
            return 0.0
        done, begin = self._first
        return (self._done - done) / (now - begin) if now > begin else 0.0
