"""Running a reader's code so that it always returns: within a time limit, and without ending the process."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import TypeVar

T = TypeVar("T")

#: Seconds between further attempts if the code caught the first one: `except:` in a loop needs more than one.
_AGAIN = 0.01


class OutOfTime(BaseException):
    """The time is up. Not an Exception, so that `except Exception` in the stopped code does not catch it."""


class Escape(Exception):
    """The code tried to end the process: SystemExit, or a KeyboardInterrupt without a key press."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call()`, if it returns within `seconds`.

    Python code is stopped wherever it is, calls into C only when they return.

    Raises:
        OutOfTime: it did not return in time.
        Escape: it raised something that is meant to end the process.
        KeyboardInterrupt: the user interrupted it.
        Exception: whatever else it raised.
    """

    def run() -> T:
        return call()

    watched = _alarm if _can_use_signals() else _watcher
    with _pressed_key() as pressed, watched(seconds, run.__code__):
        try:
            return run()
        except (OutOfTime, Exception):
            raise
        except BaseException as error:
            if pressed:
                raise
            raise Escape(f"{type(error).__name__} {error}".strip()) from None


def _can_use_signals() -> bool:
    """Whether a timer signal can be used: only the main thread gets signals, and Windows has no such timer."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def _is_inside(frame: FrameType | None, code: CodeType) -> bool:
    """Whether `code` is running in `frame` or above it; if not, there is nothing left to stop."""
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


@contextmanager
def _alarm(seconds: float, code: CodeType) -> Iterator[None]:
    """Raise OutOfTime in `code` by a signal; an alarm set by someone else is restored afterwards."""

    def ring(_number: int, frame: FrameType | None) -> None:
        if _is_inside(frame, code):
            raise OutOfTime

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)


@contextmanager
def _watcher(seconds: float, code: CodeType) -> Iterator[None]:
    """Raise OutOfTime in `code`, from a second thread."""
    thread, done, rung = threading.get_ident(), threading.Event(), threading.Event()

    def ring() -> None:
        rung.set()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OutOfTime))

    def watch() -> None:
        pause = seconds
        while not done.wait(pause):
            pause = _AGAIN
            if _is_inside(sys._current_frames().get(thread), code):
                ring()

    def stop() -> None:
        done.set()
        watching.join()
        if rung.is_set():
            # An exception may still be pending. Clearing it (with a null) would leave CPython 3.11 with a flag for
            # pending work that is never reset: all code is slower from then on, and code under a profiler or debugger
            # hangs. So it is replaced by another one, which is waited for.
            ring()
            while True:
                pass

    watching = threading.Thread(target=watch, daemon=True, name="fusionlib-time-limit")
    watching.start()
    try:
        yield
    finally:
        while watching.is_alive() or rung.is_set():
            try:
                stop()
            except OutOfTime:
                if not watching.is_alive():
                    break


@contextmanager
def _pressed_key() -> Iterator[list[int]]:
    """A list that stays empty until the user interrupts the process; the interrupt still has its usual effect."""
    pressed: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        usual(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)
