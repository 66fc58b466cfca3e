"""A recorded decode step in words: times, predicted and measured savings, and why blocks have so many kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fusionlab.observe.bench.text import aligned
from fusionlab.observe.step.decode_sizes import LINEAR
from fusionlab.observe.step.recorded_step import BlockKernels, RecordedStep, SavingCheck
from fusionlab.observe.step.saved_parts import SavedParts

ROWS = 4  # what the product takes is a multiple of as many


def step_table(recorded: RecordedStep) -> str:
    """Times, savings, kernels and memory, a line for each number of tokens and variant."""
    lines = [
        [
            str(row.tokens),
            row.label,
            f"{row.median_us:.0f}",
            f"{row.p10_us:.0f} to {row.p90_us:.0f}",
            "" if row.saved is None or row.variant == "opaque" else f"{row.saved:+.1%}",
            " + ".join(str(found.kernels) for found in row.blocks.values()) or "-",
            " + ".join(str(found.quantisations) for found in row.blocks.values()) or "-",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
        ]
        for row in recorded.rows
    ]
    header = ["tokens", "variant", "µs", "10th to 90th", "saved", "kernels", "quantising", "MB"]
    return "\n".join(aligned([header, *lines]))


def check_table(recorded: RecordedStep) -> str:
    """Predicted and measured savings, and what the traces say of the difference; a line for each number of tokens."""
    lines = []
    for check in recorded.checks:
        parts = check.parts
        found = (
            (parts.replaced_us - parts.fused_us, parts.shared_us, parts.other_gaps_us, parts.unseen_us) if parts else ()
        )
        cells = [f"{value:.0f}" for value in (check.predicted_us, check.measured_us)]
        cells += [f"{value:+.0f}" for value in (check.residual_us, *found)]
        lines.append([str(check.tokens), *cells, *["-"] * (4 - len(found))])
    header = ["tokens", "predicted", "measured", "residual", "shorter", "same kernels", "gaps", "not in traces"]
    return "\n".join(aligned([header, *lines]))


def check_text(check: SavingCheck) -> str:
    """One saving in sentences: predicted, measured, and where the difference comes from."""
    more = "more" if check.residual_us >= 0 else "less"
    text = (
        f"{_tokens(check.tokens)}: predicted {check.predicted_us:.0f} µs without {check.sites} quantisation kernels, "
        f"measured {check.measured_us:.0f} µs, {abs(check.residual_us):.0f} µs {more}."
    )
    return text if check.parts is None else f"{text} {_explained(check.parts)}"


def _explained(parts: SavedParts) -> str:
    shorter = parts.replaced_us - parts.fused_us
    extra = parts.replaced - parts.fused
    word = "less" if shorter >= 0 else "more"
    first = (
        f"By one replay of a block of each kind, the {parts.fused} fused kernels take {abs(shorter):.0f} µs {word} "
        f"than the {parts.replaced} kernels whose work they do besides the quantisation"
    )
    first += f", {extra} of which went without being predicted." if extra > 0 else "."
    changes = [
        f"{value:+.0f} µs {what}"
        for value, what in (
            (parts.shared_us, "are from kernels that both run"),
            (parts.other_gaps_us, "from other gaps"),
            (parts.unseen_us, "not in the traces of single blocks"),
        )
    ]
    return f"{first} {', '.join(changes[:-1])}, and {changes[-1]}."


def padding_text(recorded: RecordedStep) -> str:
    """Why a block has more kernels at some numbers of tokens; empty if it has not."""
    return why_more_kernels((row.tokens, row.blocks) for row in recorded.rows if row.variant == "opaque" and row.blocks)


def why_more_kernels(blocks: Iterable[tuple[int, Mapping[str, BlockKernels]]]) -> str:
    """Why a block has more kernels at a number of tokens that is no multiple of 4, from `opaque`'s blocks."""
    found = {tokens: kinds[LINEAR] for tokens, kinds in blocks if LINEAR in kinds}
    padded = [tokens for tokens in found if tokens % ROWS]
    whole = [tokens for tokens in found if not tokens % ROWS]
    if not padded or not whole:
        return ""
    few, many = padded[0], whole[-1] if 16 not in whole else 16
    copies: Sequence[int | None] = (found[few].copies, found[many].copies)
    counted = (
        f" Copies and fills are {copies[0]} of the {found[few].kernels}, and {copies[1]} of the {found[many].kernels}."
        if None not in copies
        else ""
    )
    return (
        f"At {_tokens(few)} a linear block has {found[few].kernels} kernels, at {_tokens(many)} {found[many].kernels}: "
        f"the FP8 product takes a multiple of {ROWS} rows. block_scaled_mm pads codes and scales in front of each of a "
        f"block's {found[few].quantisations} products and cuts the result behind it, in every variant.{counted}"
    )


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"
