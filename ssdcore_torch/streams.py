"""stdout and stderr that cannot end the work which they tell of: closed, full, or of an encoding without "→"."""

from __future__ import annotations

import io
import os
import sys
from typing import IO, Any


class Steady:
    """A text stream whose writes never raise: what cannot be encoded is escaped, what cannot be written is dropped.

    `failed` is the first error of the system's, or None.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self.failed: Exception | None = None

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, name: str, *text: str) -> None:
        if self._stream is None:
            return
        try:
            try:
                getattr(self._stream, name)(*text)
            except UnicodeEncodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write("".join(text).encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: of a closed file
            self.failed = self.failed or error

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        if self._stream is None and name in ("encoding", "errors"):
            return "utf-8" if name == "encoding" else "strict"
        return getattr(self._stream, name)


def steady(stream: IO[str] | None) -> Steady:
    """The stream as one whose writes never raise."""
    return stream if isinstance(stream, Steady) else Steady(stream)


def steady_output() -> None:
    """Make stdout and stderr of this process such streams, and open descriptors 0 to 2 where they are closed: else the
    next files that are opened would take their numbers, and what C code prints would end up in them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest free number
    sys.stdout, sys.stderr = steady(sys.stdout), steady(sys.stderr)
