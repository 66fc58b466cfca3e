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
    """One notebook: its file name without suffix, its title, and the names of its exercises."""

    notebook: str
    title: str
    exercises: tuple[str, ...]


CHAPTERS = (
    Chapter("00_the_nine_microseconds", "The nine microseconds", ("wider_inputs",)),
    Chapter("01_one_row", "One row", ("one_row.read_a_byte", "one_row.a_scale", "one_row.free_roundings")),
    Chapter("02_what_the_compiler_sees", "What the compiler sees", ("graph-readers", "graph-fused-bytes")),
    Chapter(
        "03_matching",
        "Matching",
        ("matching/which-fire", "matching/why-refused", "matching/fix-it", "matching/new-spelling"),
    ),
    Chapter("04_rewriting", "Rewriting", ("graph-double-negation", "graph-stable-uuid")),
    Chapter("05_the_kernel", "The kernel", ("kernel.gate_offset", "kernel.per_token_bytes", "kernel.fp8_conversion")),
    Chapter("06_the_trace", "The trace", ("queue_delay", "idle_time", "fused_time", "step_share")),
    Chapter("07_a_whole_model", "A whole model", ("model_sites", "model_expect", "model_share", "model_step")),
    Chapter(
        "08_your_own_fusion",
        "Your own fusion",
        (
            "capstone_reference",
            "capstone_bytes",
            "capstone_test",
            "capstone_fake",
            "capstone_read",
            "capstone_replace",
            "capstone_pass",
            "capstone_kernel",
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
    which = f"its exercise {left[0]}" if len(left) == 1 else f"its exercises {', '.join(left[:3])}"
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return f"{solved} of {total} exercises are solved. Next: {following.chapter.notebook}, {which}{more}."
