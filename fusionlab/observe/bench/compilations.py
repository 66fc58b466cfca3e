"""For what Inductor compiles: the fastest of several compilations.

Inductor times its candidate launches when it compiles, and keeps one. It does not seem to distinguish kernels of two
microseconds, so its choice is random: `data/README.md` has the observations. The light is tuned by a sweep before it is
measured; the equivalent for Inductor is to compile more than once and keep the fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from fusionlab.observe.bench.cases import Case
from fusionlab.observe.bench.context import Buffers
from fusionlab.observe.bench.results import percentiles
from fusionlab.observe.bench.run import Settings, make_buffers, sample_alone
from fusionlab.observe.bench.timer import Timer
from fusionlab.observe.bench.variants import Call
from fusionlab.observe.tuning import own_tuning

_ROUNDS = 5


class FastestCompilation:
    """Compiles a variant `settings.compilations` times and keeps the fastest."""

    def __init__(self, timer: Timer, settings: Settings) -> None:
        self.timer, self.settings = timer, replace(settings, rounds=_ROUNDS)

    def __call__(self, case: Case, make: Callable[[Case], Call]) -> tuple[Call, list[float]]:
        """The fastest call for `case` alone, and each compilation's median time in microseconds, fastest first."""
        alone = replace(case, context="alone")
        (first,) = make_buffers(alone, 1, self.settings)
        calls = {number: _compiled(case, make, first) for number in range(self.settings.compilations)}
        samples = sample_alone(alone, calls, self.timer, self.settings)
        medians = {number: percentiles(taken)[0] for number, taken in samples.items()}
        return calls[min(medians, key=medians.__getitem__)], sorted(medians.values())


def _compiled(case: Case, make: Callable[[Case], Call], first: Buffers) -> Call:
    """One compilation with a fresh choice of launches, under the same grad mode as the measurement."""
    with own_tuning(keep_binaries=True), torch.no_grad():
        call = make(case)
        call(*first.tensors)
    return call
