"""Trace files, one event at a time: bounded in size and memory, whatever the file holds.

A trace of a few steps is a few megabytes; one of an hour is gigabytes, and a gzip bomb is as large as its author likes.
Nothing here keeps more than one chunk and one event, so that the limits hold before memory is taken.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 20  # bytes read at a time
_WHITESPACE = " \t\r\n"
_EVENTS = "traceEvents"


class TraceError(ValueError):
    """A trace that cannot be read or written: the message names the file, the limit or fault, and the way out."""


@dataclass(frozen=True)
class Limits:
    """What a trace file may take; `read_trace` needs about 1.5 kB of memory for a GPU event, and one chunk of text.

    Args:
        file_bytes: size of the file as it lies on disk, compressed or not.
        text_bytes: size of the JSON text after decompression.
        events: number of entries in `traceEvents`.
        value_chars: length of one event, or of one other top-level value, in characters.
    """

    file_bytes: int = 256 << 20
    text_bytes: int = 1 << 30
    events: int = 2_000_000
    value_chars: int = 1 << 20

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Limits.{field}={value!r} must be a positive integer")


def read_values(path: str | Path, limits: Limits | None = None) -> Iterator[tuple[str, Any]]:
    """The top-level values of the trace at `path`, in file order, as (key, value).

    `traceEvents` comes as one pair an event; a file that is a bare array of events (the Chrome format's other form)
    comes as such pairs too. Gzip is told by its magic bytes, not by the file's name.

    Raises:
        TraceError: for a file that is missing, unreadable, no trace, truncated, malformed or past a limit.
    """
    path, limits = Path(path), limits or Limits()
    try:
        with _open(path, limits) as file:
            yield from _Scanner(path, file, limits).values()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: the gzip stream is damaged or cut off ({error}); record or copy it again") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text ({error.reason}); it is no JSON trace") from error
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}; check the path and its rights") from error


def _open(path: Path, limits: Limits) -> IO[bytes]:
    try:
        status = path.stat()
    except ValueError as error:  # a null byte in the name
        raise TraceError(f"{str(path)!r}: not a file name ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise TraceError(f"{path}: not a regular file; give the .json or .json.gz that the profiler wrote")
    if status.st_size > limits.file_bytes:
        raise TraceError(
            f"{path}: {status.st_size} bytes, over the limit of {limits.file_bytes}; record fewer steps, or raise "
            "Limits.file_bytes"
        )
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")


class _Scanner:
    """A cursor over JSON text that holds a window of it: consumed text is dropped, missing text is read."""

    def __init__(self, path: Path, file: IO[bytes], limits: Limits) -> None:
        self.path, self.file, self.limits = path, file, limits
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.parse = json.JSONDecoder().raw_decode
        self.text, self.at, self.taken, self.ended = "", 0, 0, False

    def values(self) -> Iterator[tuple[str, Any]]:
        """All top-level (key, value) pairs."""
        opening = self.peek()
        if opening == "[":
            yield from self.events()
        elif opening == "{":
            yield from self.members()
        else:
            raise self.fault("it starts with neither '{' nor '[', as a Kineto or Chrome trace does")
        if self.peek():
            raise self.fault("text follows the end of the trace")

    def members(self) -> Iterator[tuple[str, Any]]:
        """The members of the top-level object, which must hold `traceEvents` once."""
        seen = False
        for _ in self.items("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self.fault(f"a key is {type(key).__name__}, not a string")
            self.expect(":")
            if key == _EVENTS:
                if seen or self.peek() != "[":
                    raise self.fault(f"{_EVENTS!r} is {'given twice' if seen else 'not a list'}")
                seen = True
                yield from self.events()
            else:
                yield key, self.value()
        if not seen:
            raise self.fault(f"it has no {_EVENTS!r}")

    def events(self) -> Iterator[tuple[str, Any]]:
        """The elements of a list of events."""
        for count in self.items("[", "]"):
            if count >= self.limits.events:
                raise TraceError(
                    f"{self.path}: more than {self.limits.events} events; record fewer steps, or raise Limits.events"
                )
            yield _EVENTS, self.value()

    def items(self, opening: str, closing: str) -> Iterator[int]:
        """Step through a container: yields a running number wherever an item starts; the caller reads the item."""
        self.expect(opening)
        if self.peek() == closing:
            self.expect(closing)
            return
        count = 0
        while True:
            yield count
            count += 1
            if self.peek() == closing:
                self.expect(closing)
                return
            self.expect(",")

    def expect(self, character: str) -> None:
        """Consume `character` behind any whitespace."""
        found = self.peek()
        if found != character:
            raise self.fault(f"expected {character!r}, found {found!r}" if found else "it ends in the middle")
        self.at += 1

    def peek(self) -> str:
        """The next character that is no whitespace, unconsumed; empty at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _WHITESPACE:
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def value(self) -> Any:
        """Consume one JSON value."""
        self.peek()
        while True:
            try:
                value, end = self.parse(self.text, self.at)
                problem = None
            except (ValueError, RecursionError) as error:
                end, problem = len(self.text), str(error).split(":")[0]
            # A number at the window's edge may go on behind it ("1" or "1." of "1.5"); nothing else parses when cut.
            whole = end < len(self.text) and self.text[end] not in ".eE"
            if whole or not self.wanted(end) or not self.more():
                break
        if problem is None and end - self.at <= self.limits.value_chars:
            self.at = end
            return value
        if len(self.text) - self.at > self.limits.value_chars:
            limit = self.limits.value_chars
            raise self.fault(f"a value is malformed or longer than {limit} characters (Limits.value_chars)")
        raise self.fault(f"it ends in the middle or is no JSON ({problem})")

    def wanted(self, end: int) -> bool:
        """Whether a value that reached the window's end may still be within its limit."""
        return end - self.at <= self.limits.value_chars

    def more(self) -> bool:
        """Read at least one further chunk behind the unconsumed text; False at the end of the file."""
        if self.ended:
            return False
        # As much again as is waiting: a value that spans n chunks is then parsed log n times, not n.
        data = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.taken += len(data)
        if self.taken > self.limits.text_bytes:
            raise TraceError(
                f"{self.path}: more than {self.limits.text_bytes} bytes of text; record fewer steps, or raise "
                "Limits.text_bytes"
            )
        self.ended = not data
        self.text = self.text[self.at :] + self.decode(data, final=self.ended)
        self.at = 0
        return not self.ended

    def fault(self, what: str) -> TraceError:
        """An error near this place in the file."""
        return TraceError(f"{self.path}: no readable trace ({self.taken} bytes in): {what}; record or copy it again")


def number(value: Any) -> float | None:
    """`value` as a finite float, or None if it is no number (a bool is none) or has none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None
