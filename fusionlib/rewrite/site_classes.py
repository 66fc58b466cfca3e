"""Sites that say the same of different layers, as one: a model of 48 layers has a few kinds of sites, not hundreds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from fusionlib.module_paths import NUMBER, numberless

T = TypeVar("T")


def grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """`items` in groups of equal keys, groups and items in order of their first appearance."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def spell_modules(paths: Sequence[str]) -> str:
    """Modules' paths in few words: `layers.{0-2,4}.out_proj, head`.

    Paths that differ in one number alone become one, with the numbers in braces; a path that several sites have is
    named once. Without any path the result is empty.
    """
    words = []
    for same in grouped(dict.fromkeys(path for path in paths if path), numberless):
        places = list(zip(*(map(int, NUMBER.findall(path)) for path in same), strict=True))
        if sum(len(set(numbers)) > 1 for numbers in places) == 1:
            spelt = iter([_ranges(numbers) if len(set(numbers)) > 1 else str(numbers[0]) for numbers in places])
            words.append("".join(part + next(spelt, "") for part in NUMBER.split(same[0])))
        else:
            words += same
    return ", ".join(words)


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers as `{0-2,4}`."""
    words, rest = [], sorted(numbers)
    while rest:
        run = [number for place, number in enumerate(rest) if number == rest[0] + place]
        words.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
        rest = rest[len(run) :]
    return f"{{{','.join(words)}}}"
