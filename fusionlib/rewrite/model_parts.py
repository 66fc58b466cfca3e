"""Which records of compiled graphs belong together: the graphs of one compile, the parts of one model, recompiles.

Dynamo compiles a function, its *frame*, again for other inputs, each an *attempt* of it. Graph breaks cut a model into
several frames. A reset of Dynamo forgets them all and numbers the frames anew: the model begins another *life*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionlib.rewrite.report import CompileRecord, Origin, Site

Graphs = tuple["CompileRecord", ...]
#: The frames of a model between two resets, each with its attempts in order.
Life = dict[int, list[Graphs]]


def compiles(records: Iterable[CompileRecord]) -> Iterator[Graphs]:
    """The graphs of each compile: those of its branches, loops and regions, and its own. All have an origin."""
    known = [(record.origin.number, record) for record in records if record.origin is not None]
    for _, group in groupby(sorted(known, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        yield tuple(record for _, record in group)


def lives(graphs_of_compiles: Iterable[Graphs]) -> list[Life]:
    """The lives of every model in `graphs_of_compiles`, which are in order."""
    models: dict[object, list[Life]] = {}
    for graphs in graphs_of_compiles:
        origin = graphs[0].origin
        assert origin is not None
        found = models.setdefault(origin.model, [{}])
        if origin.attempt == 0 and _begins_anew(origin, found[-1]):
            found.append({})
        found[-1].setdefault(origin.frame, []).append(graphs)
    return [life for of_model in models.values() for life in of_model if life]


def _begins_anew(origin: Origin, life: Life) -> bool:
    """Whether Dynamo was reset before a first attempt: frames are numbered as they come, and a code has one number."""
    again = (frame for frame, attempts in life.items() if origin.code is not None and _code(attempts[0]) == origin.code)
    return any(frame >= origin.frame for frame in life) or any(frame != origin.frame for frame in again)


def _code(graphs: Graphs) -> object:
    return graphs[0].origin.code if graphs[0].origin is not None else None


def distinct_sites(records: Iterable[CompileRecord], kind: Callable[[Site], Hashable]) -> list[Site]:
    """The sites of all records, without those that a recompile or another life of the same model repeats.

    Of each `kind` there are as many as one compile has at most. Different frames do not repeat each other, nor do
    graphs from outside Dynamo.
    """
    records = list(records)
    found = [site for record in records if record.origin is None for site in record.sites]
    models: dict[object, list[list[Site]]] = {}
    for life in lives(compiles(records)):
        frames = [_most((_sites(graphs) for graphs in attempts), kind) for attempts in life.values()]
        origin = next(iter(life.values()))[0][0].origin
        assert origin is not None
        # What PyTorch wraps otherwise has no name, and is not known to be the same after a reset.
        model = origin.model if origin.model is not None else object()
        models.setdefault(model, []).append([site for sites in frames for site in sites])
    return found + [site for of_lives in models.values() for site in _most(of_lives, kind)]


def _sites(graphs: Graphs) -> list[Site]:
    return [site for record in graphs for site in record.sites]


def _most(versions: Iterable[list[Site]], kind: Callable[[Site], Hashable]) -> list[Site]:
    """Of each kind as many sites as the version with most of them has, the latest such version's, in their order."""
    versions = list(versions)
    counts = [Counter(map(kind, sites)) for sites in versions]
    most = {name: max(count[name] for count in counts) for count in counts for name in count}
    latest = {name: max(i for i, count in enumerate(counts) if count[name] == most[name]) for name in most}
    return [site for i, sites in enumerate(versions) for site in sites if latest[kind(site)] == i]
