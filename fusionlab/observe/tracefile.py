"""Reads trace files one event at a time: with bounded memory, whatever the file holds, and even if it is damaged.

A trace of a few steps is a few megabytes; one of an hour is gigabytes, and a gzip bomb is as large as its author likes.
Nothing here keeps more than one chunk and one event. What profilers get wrong (names that are not valid JSON, a
truncated file) costs only the affected event, and is listed among the flaws.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fusionlab.observe.events import exact_float
from fusionlab.observe.flaws import Flaws, mended, named

_CHUNK = 1 << 20  # bytes read at a time
_WHITESPACE = " \t\r\n"
_EVENTS = "traceEvents"

#: The start of an event after another one: an object with a key that events begin with.
_NEXT = re.compile(r'(?:\}\s*)?,\s*(?=\{\s*"(?:ph|cat|name|pid|tid|ts|dur|id|args)"\s*:)')
#: The end of a list of events, after the last one.
_LAST = re.compile(r"\}\s*(?=\]\s*(?:[,}]|$))")
_LIST = re.compile(rf'"{_EVENTS}"\s*:\s*\[')
_TAIL = 256  # characters that any of these fits in
_UNREADABLE = "�"  # stands for bytes that are not UTF-8
_BESIDE = "a value beside the events is no JSON, too long or cut off, and was skipped"


class TraceError(ValueError):
    """A trace that cannot be read or written: the message names the file, the limit or fault, and how to fix it."""


class _NoJson(ValueError):
    """A value that is invalid JSON or truncated; the cursor is still before it."""


class _TooLong(_NoJson):
    """A value that is longer than the limit; the cursor is after it."""


@dataclass(frozen=True)
class Limits:
    """Limits for a trace file.

    Args:
        text_bytes: size of the JSON text, after decompression. It is not kept and costs only time.
        events: number of events that are kept, about 1.5 kB of memory for a GPU event.
        value_chars: length of one event, or of another top-level value, in characters; a longer one is skipped.
    """

    text_bytes: int = 1 << 30
    events: int = 2_000_000
    value_chars: int = 1 << 20

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Limits.{field}={value!r} must be a positive integer")

    def check_text(self, path: Path, size: int) -> None:
        """Raise TraceError if `size` bytes of text are too many."""
        if size > self.text_bytes:
            raise TraceError(
                f"{path}: over the limit of {self.text_bytes} bytes of text ({self.text_bytes / 2**30:g} GiB); raise "
                "Limits.text_bytes, or record fewer steps"
            )

    def check_events(self, path: Path, count: int) -> None:
        """Raise TraceError if `count` events are too many to keep."""
        if count > self.events:
            raise TraceError(
                f"{path}: more than {self.events} events to keep; read a part of it (window_us), raise Limits.events, "
                "or record fewer steps"
            )


def read_values(
    path: str | Path, limits: Limits | None = None, flaws: Flaws | None = None
) -> Iterator[tuple[str, Any]]:
    """The top-level values of the trace at `path`, in file order, as (key, value).

    `traceEvents` yields one pair per event; so does a file that is a bare array of events (the Chrome format's other
    form). Gzip is detected by its magic bytes, not by the file's name. Numbers are parsed by `exact_float`. What cannot
    be read is skipped and added to `flaws`, whose `index` is that of the latest event.

    Raises:
        TraceError: for a file that is missing, unreadable, not a trace, over a limit, or flawed before its first event.
    """
    path, limits, flaws = Path(path), limits or Limits(), flaws or Flaws()
    try:
        with _open(path, limits) as file:
            yield from _Scanner(path, file, limits, flaws).values()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}; check the path and its rights") from error


def _open(path: Path, limits: Limits) -> IO[bytes]:
    try:
        status = path.stat()
    except ValueError as error:  # a null byte in the name
        raise TraceError(f"{str(path)!r}: not a file name ({error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise TraceError(f"{path}: not a regular file; give the .json or .json.gz that the profiler wrote")
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if not compressed:
        limits.check_text(path, status.st_size)
    return gzip.open(path, "rb") if compressed else path.open("rb")


class _Scanner:
    """A cursor over JSON text that holds a window of it: consumed text is dropped, more is read as needed."""

    def __init__(self, path: Path, file: IO[bytes], limits: Limits, flaws: Flaws) -> None:
        self.path, self.file, self.limits, self.flaws = path, file, limits, flaws
        self.decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
        # Not strict: some writers leave newlines and other control characters in names.
        self.parse = json.JSONDecoder(strict=False, parse_float=exact_float).raw_decode
        self.text, self.at, self.taken, self.ended = "", 0, 0, False
        self.damage = ""  # why the bytes end before the file does
        self.count, self.stopped = 0, False  # events seen; whether a flaw says where reading stopped

    def values(self) -> Iterator[tuple[str, Any]]:
        """All top-level (key, value) pairs."""
        opening = self.peek()
        if opening == "[":
            yield from self.events()
        elif opening == "{":
            yield from self.members()
        else:
            raise self.fault(self.damage or "it starts with neither '{' nor '[', as a Kineto or Chrome trace does")
        if self.peek() or self.damage:
            self.stop(self.damage or "text follows the end of the trace", "behind")
        if not self.count and (found := self.flaws.listed()):
            raise self.fault(f"no event in it, and {found[0].what}")

    def members(self) -> Iterator[tuple[str, Any]]:
        """The members of the top-level object, one of which must be `traceEvents`."""
        seen = False
        self.at += 1
        while (character := self.peek()) not in ("}", ""):
            if character == ",":
                self.at += 1
                continue
            try:
                key = self.key()
                if key != _EVENTS:
                    yield key, self.value()
                    continue
            except _NoJson as error:
                self.flaws.note(_BESIDE, lost=False)
                if isinstance(error, _TooLong):
                    continue
                if seen or self.seek(_LIST) is None:
                    self.stopped = True
                    break
                continue
            if self.peek() != "[":
                raise self.fault(f"{_EVENTS!r} is not a list")
            seen = True
            yield from self.events()
        if not seen:
            raise self.fault(self.damage or f"it has no {_EVENTS!r}")
        if character == "":
            self.stop(self.damage or "the file ends early", "behind")
        self.at += 1

    def events(self) -> Iterator[tuple[str, Any]]:
        """The elements of a list of events; extra or missing commas are tolerated."""
        self.at += 1
        while (character := self.peek()) not in ("]", ""):
            if character == ",":
                self.at += 1
                continue
            self.flaws.index = self.count
            self.count += 1
            try:
                if character == '"':  # not an event: a stray quote, and a string up to the next one in an event
                    raise _NoJson
                value = self.value()
            except _TooLong:
                self.flaws.add(self.too_long)
                continue
            except _NoJson:
                if (value := self.salvaged()) is None:
                    continue
            yield _EVENTS, value
        if character == "":
            self.stop(self.damage or "the file ends early", "behind")
        self.at += 1

    @property
    def too_long(self) -> str:
        """The message about an event over the limit."""
        return f"skipped: longer than {self.limits.value_chars} characters (Limits.value_chars)"

    def salvaged(self) -> Any:
        """Skip the current event, which is invalid JSON; returns it if it can be mended, else None."""
        cut = (text := self.seek(_NEXT, _LAST)) is None
        if cut:  # perhaps right after the event, or the comma that follows it
            text, self.at = self.text[self.at :].rstrip(_WHITESPACE + ","), len(self.text)
        name, category, timed = named(text[: 4 * _TAIL])
        if len(text) > self.limits.value_chars:
            self.flaws.add(self.too_long, name, category, lost=timed)
        elif (value := mended(text)) is not None:
            self.flaws.add("mended: no JSON as written", name, category, lost=False)
            return value
        elif cut:
            self.stop(self.damage or "the file ends early", "in", name)
        else:
            self.flaws.add("skipped: no JSON", name, category, lost=timed)
        return None

    def seek(self, pattern: re.Pattern[str], at_last: re.Pattern[str] | None = None) -> str | None:
        """Advance to where `pattern` matches; returns the text in between, only its beginning if that is long.

        `at_last` is tried if nothing matches within the maximum length of a value. None at the end of the file.
        """
        front, looked = "", 1
        while True:
            enough = len(self.text) - self.at > self.limits.value_chars
            found = pattern.search(self.text, self.at + looked)
            if found is None and at_last and (enough or self.ended):
                found = at_last.search(self.text, self.at + 1)
            if found:
                end = found.start() + found[0].startswith("}")
                text, self.at = front or self.text[self.at : end], end
                return text
            if self.ended:
                return None
            if enough:
                front = front or self.text[self.at :]
                self.at = len(self.text) - _TAIL
            looked = max(1, len(self.text) - self.at - _TAIL)
            self.more()

    def key(self) -> str:
        """Consume a key and its colon."""
        key = self.value()
        if not isinstance(key, str) or self.peek() != ":":
            raise _NoJson
        self.at += 1
        return key

    def peek(self) -> str:
        """The next non-whitespace character, not consumed; empty at the end."""
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
        most = self.limits.value_chars
        while True:
            try:
                value, end = self.parse(self.text, self.at)
                whole = end < len(self.text) and self.text[end] not in ".eE"
            except (ValueError, RecursionError):
                value, end, whole = None, 0, False
            # A number at the window's edge may continue beyond it ("1" or "1." of "1.5"); nothing else parses when cut.
            if whole or len(self.text) - self.at > most or self.ended:
                break
            self.more()
        if not end:
            raise _NoJson
        if end - self.at > most:
            self.at = end
            raise _TooLong
        if self.text.find(_UNREADABLE, self.at, end) >= 0:
            name = value.get("name", "") if isinstance(value, dict) else ""
            self.flaws.add(f"read with {_UNREADABLE} for bytes that are no UTF-8", name, lost=False)
        self.at = end
        return value

    def more(self) -> bool:
        """Read at least one more chunk after the unconsumed text; False at the end of the file."""
        if self.ended:
            return False
        # As much again as is unconsumed: a value that spans n chunks is then parsed log n times, not n.
        data = self.bytes(max(_CHUNK, len(self.text) - self.at))
        self.taken += len(data)
        self.limits.check_text(self.path, self.taken)
        self.ended = not data
        self.text = self.text[self.at :] + self.decode(data, final=self.ended)
        self.at = 0
        return not self.ended

    def bytes(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end; a damaged gzip stream ends where the damage begins."""
        parts = []
        while size > 0 and not self.damage:
            try:
                data = self.file.read1(size)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self.damage = f"the gzip stream is damaged or cut off ({error})"
                break
            if not data:
                break
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def stop(self, what: str, where: str, name: str = "") -> None:
        """Record where reading stopped, unless already recorded, and skip the rest of the text."""
        if not self.stopped:
            self.flaws.note(what, where, name)
        self.stopped = self.ended = True
        self.at = len(self.text)

    def fault(self, what: str) -> TraceError:
        """An error near the current position in the file."""
        return TraceError(f"{self.path}: no readable trace ({self.taken} bytes in): {what}; record or copy it again")
