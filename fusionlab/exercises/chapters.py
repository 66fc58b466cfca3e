"""Which exercises are in which notebook, in order, and what to do next.

The list is hard-coded so that it needs neither the notebooks nor torch; a test compares it with the notebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusionlab.exercises.progress import NEW, SOLVED


@dataclass(frozen=True)
class Chapter:
    """One notebook: its file name without suffix, its title, and its exercises by the names that its cells use."""

    notebook: str
    title: str
    exercises: tuple[str, ...]


CHAPTERS = (
    Chapter("00_the_nine_microseconds", "The nine microseconds", ("wider_inputs",)),
    Chapter("01_one_row", "One row", ("exercises.read_a_byte", "exercises.a_scale", "exercises.free_roundings")),
    Chapter("02_what_the_compiler_sees", "What the compiler sees", ("exercises.readers", "exercises.fused_bytes")),
    Chapter(
        "03_matching",
        "Matching",
        ("exercises.WHICH_FIRE", "exercises.WHY_REFUSED", "exercises.FIX_IT", "exercises.NEW_SPELLING"),
    ),
    Chapter("04_rewriting", "Rewriting", ("exercises.double_negation", "exercises.stable_uuid")),
    Chapter(
        "05_the_kernel",
        "The kernel",
        ("exercises.gate_offset", "exercises.per_token_bytes", "exercises.fp8_conversion"),
    ),
    Chapter(
        "06_the_trace",
        "The trace",
        ("exercises.queue_delay", "exercises.idle_time", "exercises.fused_time", "exercises.step_share"),
    ),
    Chapter(
        "07_a_whole_model",
        "A whole model",
        ("exercises.SITES", "exercises.EXPECT", "exercises.SHARE", "exercises.STEP"),
    ),
    Chapter(
        "08_your_own_fusion",
        "Your own fusion",
        (
            "capstone.REFERENCE",
            "capstone.BYTES",
            "capstone.TEST",
            "capstone.FAKE",
            "capstone.READ",
            "capstone.REPLACE",
            "capstone.PASS",
            "capstone.KERNEL",
        ),
    ),
)


@dataclass(frozen=True)
class Standing:
    """The state of the exercises of one chapter."""

    chapter: Chapter
    states: dict[str, str]

    @property
    def solved(self) -> int:
        """How many are solved."""
        return sum(state == SOLVED for state in self.states.values())

    @property
    def open(self) -> list[str]:
        """The exercises that are not solved, in order."""
        return [name for name, state in self.states.items() if state != SOLVED]

    @property
    def touched(self) -> bool:
        """Whether any was attempted."""
        return any(state != NEW for state in self.states.values())


def standings(entries: Mapping[str, Mapping[str, Any]]) -> list[Standing]:
    """Every chapter with the state of its exercises, from the result of `progress.read`."""
    return [
        Standing(chapter, {name: entries.get(name, {}).get("state", NEW) for name in chapter.exercises})
        for chapter in CHAPTERS
    ]


def what_next(all_standings: list[Standing]) -> Standing | None:
    """The chapter to continue with: from the furthest one begun, then earlier ones left open; None if all is solved."""
    furthest = max((index for index, standing in enumerate(all_standings) if standing.touched), default=0)
    ahead = [*all_standings[furthest:], *all_standings[:furthest]]
    return next((standing for standing in ahead if standing.open), None)


def summary(all_standings: list[Standing]) -> str:
    """Two sentences: how much is solved, and what is next."""
    solved, total = sum(s.solved for s in all_standings), sum(len(s.states) for s in all_standings)
    following = what_next(all_standings)
    if following is None:
        return f"All {total} exercises are solved. Next: fusionlib explain, on a model of your own."
    left = following.open
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    which = f"{', '.join(left[:3])}{more}"
    return f"{solved} of {total} exercises are solved. Next, in {following.chapter.notebook}: {which}."
