"""Which launch started which GPU event, in traces of one process and in files merged from several.

A launch and what it started share a `correlation`, but every process counts from one: in a file merged from the ranks
of a model, each number occurs once per rank. A GPU event does not name its process. It is inferred from what the file
offers: the part of the file (Kineto ends each trace with a specific event), the label that a merging tool put on all
events of a rank, and otherwise time: nothing runs before its launch, and each device has its process. If that leaves
two candidates, nothing is joined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """An event's origin in a file: the part, a merging tool's label, and the process (for GPU events, a device)."""

    part: int
    label: str
    pid: str


@dataclass(frozen=True, slots=True)
class Call:
    """What a join needs from a launch; `key` belongs to the caller."""

    source: Source
    correlation: int
    external: int | None
    start_ns: int
    key: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a join needs from a GPU event; `place` distinguishes devices of one source."""

    source: Source
    place: Hashable
    correlation: int | None
    external: int | None
    end_ns: int


def processes(sources: Iterable[Source]) -> dict[Source, Source]:
    """The process of every source of host events.

    The parts of a file are kept separate if each holds only one process. A file whose events were sorted after the
    merge also contains Kineto's end marks, but there they separate nothing.
    """
    found = set(sources)
    in_part = Counter(part for part, _ in {(source.part, source.pid) for source in found})
    parted = all(count == 1 for count in in_part.values())
    return {source: source if parted else Source(0, source.label, source.pid) for source in found}


class Joiner:
    """Finds the launch of GPU events among `calls`; of several with one process and correlation, the earliest counts.

    `hosts` are the sources of the calls, or of the operators in a file without calls.
    """

    def __init__(self, hosts: Iterable[Source], calls: Iterable[Call], works: Iterable[Work]) -> None:
        self.process = processes(hosts)
        self.by_process: dict[Source, dict[int, Call]] = {process: {} for process in self.process.values()}
        self.several = len(self.by_process) > 1
        for call in sorted(calls, key=lambda call: call.start_ns):
            self.by_process[self.process[call.source]].setdefault(call.correlation, call)
        self.owners = self._owners(works) if self.several else {}

    def launch(self, work: Work) -> tuple[Call | None, bool]:
        """The launch of `work`, and whether there is none because several processes may have made it."""
        if not work.correlation:
            return None, False
        found = [
            call
            for process in self.candidates(work)
            if (call := self.by_process[process].get(work.correlation)) and (not self.several or _possible(call, work))
        ]
        return (found[0], False) if len(found) == 1 else (None, len(found) > 1)

    def candidates(self, work: Work) -> Sequence[Source]:
        """The processes that may have launched `work`; a single one if it is known."""
        if self.several:
            return self.owners[work.source, work.place]
        return list(self.by_process)

    def _owners(self, works: Iterable[Work]) -> dict[Hashable, list[Source]]:
        """The process of every device; several if they cannot be distinguished."""
        scores: dict[Hashable, Counter[Source]] = {}
        for work in works:
            place = (work.source, work.place)
            if place not in scores:
                scores[place] = Counter(dict.fromkeys(self._alike(work.source), 0))
            if work.correlation:
                for process in scores[place]:
                    call = self.by_process[process].get(work.correlation)
                    scores[place][process] += call is not None and _possible(call, work)
        owners = {place: _best(score) for place, score in scores.items()}
        _drop_claimed(owners)
        # A process that launched something but has no device shares one, whose events are then matched individually.
        taken = {process for found in owners.values() for process in found}
        for place, score in scores.items():
            owners[place] += [process for process in score if score[process] and process not in taken]
        return owners

    def _alike(self, source: Source) -> list[Source]:
        """The processes with the same part of the file and the same label, as far as these distinguish any."""
        found = list(self.by_process)
        for field in ("part", "label"):
            same = [process for process in found if getattr(process, field) == getattr(source, field)]
            found = same or found
        return found


def _possible(call: Call, work: Work) -> bool:
    """Whether `call` can have launched `work`: it began before the work ended, for the same operator."""
    return call.start_ns <= work.end_ns and (None in (call.external, work.external) or call.external == work.external)


def _best(score: Mapping[Source, int]) -> list[Source]:
    most = max(score.values(), default=0)
    return [process for process, count in score.items() if count == most]


def _drop_claimed(owners: dict[Hashable, list[Source]]) -> None:
    """Of processes that fit a device equally well, drop those that certainly have another device."""
    changed = True
    while changed:
        certain = {found[0] for found in owners.values() if len(found) == 1}
        changed = False
        for place, found in owners.items():
            left = [process for process in found if process not in certain]
            if len(found) > 1 and left and len(left) < len(found):
                owners[place], changed = left, True
