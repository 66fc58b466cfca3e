"""The versions' times as benchmark results: what `fusionlib bench --versions` writes, and what notebook 05 reads.

A document has the format of the other benchmarks (`observe.bench.results`). Its cases are those of `CASES`: every call
on different buffers or, to show why that matters, every call on the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from fusionlab.observe.bench.results import Results, Row, Skipped, read_results
from fusionlab.observe.bench.timer import Timer
from fusionlab.versions.check import check_all
from fusionlab.versions.timing import Timed, key_of, time_all
from fusionlib.spec import GatedNorm, GroupQuant

SHAPE, HEADS = "32x128", 32
TOKENS = (1, 64, 8192)
ROTATING, WARM = "versions", "versions_warm"
#: (gate, context)
CASES = (("contiguous", ROTATING), ("strided", ROTATING), ("contiguous", WARM))
NORM, QUANT = GatedNorm.qwen3_next(), GroupQuant.vllm()
CHECKED_TOKENS = 64
FAR = 1  # FP8 steps; versions whose division is not eager's differ by one in some codes, but never by more


def measure(
    tokens: Sequence[int],
    timer: Timer,
    results: Results,
    *,
    rounds: int,
    seed: int,
    device: str = "cuda",
    save: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> None:
    """Check every version, then time all of them in every case, into `results`; `save` is called after each case.

    A version with errors that its division does not explain is timed like the others, and named in `results.skipped`.
    """
    _check(results, seed, device, say)
    for count in tokens:
        for gate, context in CASES:
            strided, warm = gate == "strided", context == WARM
            timed = time_all(
                count, HEADS, NORM, QUANT, strided_gate=strided, warm=warm, seed=seed, rounds=rounds,
                timer=timer, device=device,
            )  # fmt: skip
            results.rows += [_row(one, count, gate, context, rounds) for one in timed]
            timer.release()
            save()
            say(f"timed    {SHAPE}/{count}/{gate}/{context}")


def recorded(results: Results, tokens: int, gate: str = "contiguous", context: str = ROTATING) -> list[Timed]:
    """What was measured in one case, in the recorded order; empty if nothing was."""
    wanted = (tokens, gate, context)
    return [
        Timed(row.variant, row.median_us, row.p10_us, row.p90_us, row.bytes, row.copies)
        for row in results.rows
        if (row.tokens, row.gate, row.context) == wanted
    ]


def everywhere(
    tokens: int, gate: str = "contiguous", context: str = ROTATING, *, data: Path | None = None
) -> dict[str, list[Timed]]:
    """Device -> what is recorded for one case in `data` (default: the checkout's); only devices that have it."""
    from fusionlab.observe.evidence import benchmarks

    found = {}
    for benchmark in benchmarks(data):
        if timed := recorded(read_results(benchmark.document, benchmark.path.name), tokens, gate, context):
            found[benchmark.manifest.machine.device] = timed
    return found


def _check(results: Results, seed: int, device: str, say: Callable[[str], None]) -> None:
    for name, problem in _problems(seed, device):
        results.skipped.append(Skipped(f"{SHAPE}/{CHECKED_TOKENS}/strided/{ROTATING}", name, problem, wrong=True))
        say(f"WRONG    {name}: {problem}")


def _problems(seed: int, device: str) -> Iterator[tuple[str, str]]:
    """Versions with a code further from the reference's than their division explains."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(CHECKED_TOKENS, HEADS, NORM.norm_size, generator=generator, device=device).bfloat16()
    wide = torch.randn(CHECKED_TOKENS, HEADS // 2, 6 * NORM.norm_size, generator=generator, device=device).bfloat16()
    weight = (torch.rand(NORM.norm_size, generator=generator, device=device) + 0.5).bfloat16()
    for found in check_all(x, wide[..., -2 * NORM.norm_size :], weight, NORM, QUANT):
        if found.steps > FAR:
            yield key_of(found.version), f"a code is {found.steps} FP8 steps from the reference's; {FAR} is the most"


def _row(one: Timed, tokens: int, gate: str, context: str, rounds: int) -> Row:
    return Row(
        case=f"{SHAPE}/{tokens}/{gate}/{context}",
        shape=SHAPE,
        tokens=tokens,
        gate=gate,
        context=context,
        variant=one.key,
        median_us=one.median_us,
        p10_us=one.low_us,
        p90_us=one.high_us,
        samples=rounds,
        copies=one.sets,
        bytes=one.bytes,
        gb_s=one.gb_s,
    )
