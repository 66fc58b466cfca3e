"""Sweeps over launch configurations: for our heuristic's thresholds, and to tune the light as thoroughly as ours.

The grid covers the fields of `kernels.config.LaunchConfig`, which all kernels share: a new field must be listed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from fusionlab.observe.bench.cases import Case
from fusionlab.observe.bench.results import Results, Skipped, SweepRow, percentiles
from fusionlab.observe.bench.run import Say, Settings, heuristic, sample_alone
from fusionlab.observe.bench.timer import Timer
from fusionlab.observe.bench.variants import Call, fused_call, light_call
from fusionlib.commands.failure import in_a_line
from fusionlib.contract import amd_arch
from fusionlib.devices import threads_per_warp

#: Values to try for each field of LaunchConfig.
GRID: dict[str, tuple[Any, ...]] = {
    "rows": (1, 2, 4, 8, 16, 32),
    "num_warps": (1, 2, 4, 8, 16),
}
LEAST_ELEMENTS, MOST_ELEMENTS = 2, 64  # values per thread; more spill, fewer leave lanes idle


def configurations(case: Case, lanes: int = 32) -> list[Any]:
    """Every `LaunchConfig` of the grid that fits `case`'s unit on warps of `lanes`, including the heuristic's."""
    import triton

    from fusionlib.kernels.config import LaunchConfig

    block = triton.next_power_of_2(case.unit)
    found = []
    for values in itertools.product(*GRID.values()):
        config = LaunchConfig(**dict(zip(GRID, values, strict=True)))
        threads = config.num_warps * lanes
        elements = config.rows * block / threads
        if threads <= 1024 and LEAST_ELEMENTS <= elements <= MOST_ELEMENTS:
            found.append(config)
    own = heuristic(case)
    return found if own in found else [own, *found]


KERNELS: dict[str, Callable[[Case, Any], Call]] = {"fused": fused_call, "light": light_call}


def sweep_case(
    case: Case,
    timer: Timer,
    settings: Settings,
    kernels: Sequence[str] | None = None,
    results: Results | None = None,
) -> list[SweepRow]:
    """Time every configuration of `kernels` (default: all) in `case`, interleaved; those that fail are skipped."""

    own = heuristic(case)
    grid = itertools.product(kernels or KERNELS, configurations(case, threads_per_warp(amd_arch())))

    def failed(key: tuple[str, Any], error: Exception) -> None:
        if results is not None:
            results.skipped.append(Skipped(case.name, "{} {}".format(*key), in_a_line(error, 120)))

    calls = {(kernel, config): KERNELS[kernel](case, config) for kernel, config in grid}
    samples = sample_alone(case, calls, timer, settings, failed)
    rows = []
    for (kernel, config), taken in samples.items():
        times = percentiles(taken)
        rows.append(SweepRow(case.name, case.unit, case.units, kernel, asdict(config), *times, config == own))
    return rows


def sweep_all(
    cases: Iterable[Case],
    timer: Timer,
    settings: Settings,
    results: Results,
    say: Say = print,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Sweep every case without a chain; rows go to `results.sweep`, and `save` is called after each case."""
    for case in cases:
        if case.context != "alone":
            continue
        rows = sweep_case(case, timer, settings, results=results)
        results.sweep += rows
        save()
        for kernel in KERNELS:
            best = best_of(rows, kernel)
            if best:
                say(f"swept    {case.name} {kernel}: best {words(best.launch)} at {best.median_us:.2f} us")


def best_of(rows: Iterable[SweepRow], kernel: str) -> SweepRow | None:
    """The fastest configuration of `kernel` by median, None if there are none."""
    return min((row for row in rows if row.kernel == kernel), key=lambda row: row.median_us, default=None)


def words(launch: dict[str, Any]) -> str:
    """A launch configuration as text: `8 rows, 4 warps`, and whatever else is set."""
    rest = [f"{name}={value}" for name, value in launch.items() if name not in ("rows", "num_warps")]
    return ", ".join([f"{launch['rows']} rows", f"{launch['num_warps']} warps", *rest])


class TunedLight:
    """The light's best launch for each shape, number of tokens and gate, swept on first use."""

    def __init__(self, timer: Timer, settings: Settings) -> None:
        self.timer, self.settings = timer, settings
        self._known: dict[tuple[str, int, str], Any] = {}

    def __call__(self, case: Case) -> Any:
        """The `LaunchConfig` for `case`; in a chain, that of the same case alone."""
        from fusionlib.kernels.config import LaunchConfig

        key = (case.shape.name, case.tokens, case.gate)
        if key not in self._known:
            rows = sweep_case(Case(case.shape, case.tokens, case.gate), self.timer, self.settings, ("light",))
            best = best_of(rows, "light")
            self._known[key] = LaunchConfig(**best.launch) if best else heuristic(case)
        return self._known[key]
