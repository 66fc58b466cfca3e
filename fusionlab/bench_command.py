"""`fusionlib bench`: the benchmark's command, with the measurements that other parts of the lab add to it.

Examples::

    fusionlib bench --versions                    the kernel's seven versions of notebook 05, beside the light
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fusionlab.observe.bench import command


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the `bench` command to the parser."""
    command.register(subparsers, [VERSIONS])


def _measure_versions(tokens: Sequence[int] | None, *timer_and_results: Any, **how: Any) -> None:
    from fusionlab.versions import recorded_times

    recorded_times.measure(tokens or recorded_times.TOKENS, *timer_and_results, **how)


VERSIONS = command.Measurement(
    "versions", "time the versions of notebook 05 instead; --tokens 1 64 8192 by default", _measure_versions
)
