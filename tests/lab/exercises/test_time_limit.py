"""Code that never ends, or would end the process, becomes an error; a user's interrupt still works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fusionlab.exercises import time_limit
from fusionlab.exercises.time_limit import Escape, OutOfTime, within


def spin():
    while True:
        pass


def spin_and_catch_exceptions():
    while True:
        try:
            sum(range(100))
        except Exception:
            continue


def spin_and_catch_everything():
    while True:
        try:
            sum(range(100))
        except:  # noqa: E722
            continue


def sleep():
    time.sleep(60)


ENDLESS = (spin, spin_and_catch_exceptions, spin_and_catch_everything)


@pytest.mark.parametrize("call", [*ENDLESS, sleep])
def test_what_never_ends_is_stopped(call):
    with pytest.raises(OutOfTime):
        within(0.05, call)


@pytest.mark.parametrize("call", ENDLESS)
def test_it_is_stopped_in_another_thread_too(call):
    raised = []

    def judge():
        try:
            within(0.05, call)
        except BaseException as error:
            raised.append(type(error))

    thread = threading.Thread(target=judge, daemon=True)
    thread.start()
    thread.join(60)
    assert raised == [OutOfTime]


@pytest.mark.parametrize("signals", [True, False])
def test_what_ends_in_time_is_handed_back_and_nothing_rings_later(monkeypatch, signals):
    monkeypatch.setattr(time_limit, "_can_use_signals", lambda: signals)
    assert within(0.05, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(0.05, lambda: 1 / 0)
    deadline = time.monotonic() + 0.15
    while time.monotonic() < deadline:
        pass


UNDER_A_PROFILER = """
import sys
from fusionlab.exercises import time_limit

time_limit._can_use_signals = lambda: False
for call in (lambda: 7, lambda: [None for _ in iter(int, 1)]):
    try:
        time_limit.within(0.05, call)
    except time_limit.OutOfTime:
        print("stopped")

sys.setprofile(lambda *_: None)
print(sum(n for n in range(1000)))
"""


def test_the_interpreter_is_left_as_it_was():
    """Under a profiler, CPython 3.11 hangs forever if a pending exception is cleared."""
    run = subprocess.run([sys.executable, "-c", UNDER_A_PROFILER], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["stopped", "499500"], run.stderr


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_the_process_is_an_error(error):
    def leave():
        raise error("bye")

    with pytest.raises(Escape, match=f"{error.__name__} bye"):
        within(5, leave)
    with pytest.raises(Escape, match="SystemExit 3"):
        within(5, lambda: sys.exit(3))


def test_a_pressed_key_interrupts():
    # Python's own handler; a shell's background job starts with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            within(60, lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5)))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_alarm_of_somebody_else_goes_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        within(5, lambda: None)
        deadline = time.monotonic() + 30
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert rung
