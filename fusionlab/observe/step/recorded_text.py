"""A recorded decode step in words: times, predicted and measured savings, and why blocks have so many kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fusionlab.observe.bench.text import aligned
from fusionlab.observe.step.decode_sizes import LINEAR
from fusionlab.observe.step.recorded_step import BlockKernels, RecordedStep, SavingCheck
from fusionlab.observe.step.saved_parts import SavedParts
from fusionlab.observe.step.step_variants import STEP_VARIANTS

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
    return savings_table("tokens", [(str(check.tokens), check) for check in recorded.checks])


def savings_table(what: str, checks: Iterable[tuple[str, SavingCheck]]) -> str:
    """The same for any checks, each with the words of its line; `what` is the heading of these."""
    lines = []
    for words, check in checks:
        parts = check.parts
        found = (
            (parts.replaced_us - parts.fused_us, parts.shared_us, parts.other_gaps_us, parts.unseen_us) if parts else ()
        )
        cells = [f"{value:.0f}" for value in (check.predicted_us, check.measured_us)]
        cells += [f"{value:+.0f}" for value in (check.residual_us, *found)]
        lines.append([words, *cells, *["-"] * (4 - len(found))])
    header = [what, "predicted", "measured", "residual", "shorter", "same kernels", "gaps", "not in traces"]
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


def linear_kernels(recorded: RecordedStep) -> dict[tuple[int, str], BlockKernels]:
    """(tokens, variant) -> the kernels of a linear block, where they were counted."""
    return {(row.tokens, row.variant): row.blocks[LINEAR] for row in recorded.rows if LINEAR in row.blocks}


def padded(linear: Mapping[tuple[int, str], BlockKernels]) -> dict[int, list[str]]:
    """Tokens that are no multiple of 4 -> the variants whose blocks have more kernels there than at a multiple of 4."""
    found: dict[int, list[str]] = {}
    for (tokens, variant), here in linear.items():
        whole = _at_fours(linear, variant)
        if tokens % ROWS and whole and here.kernels > linear[whole[0], variant].kernels:
            found.setdefault(tokens, []).append(variant)
    return found


def padding_text(recorded: RecordedStep) -> str:
    """Why a block has more kernels at some numbers of tokens; empty if it has not."""
    return why_more_kernels(linear_kernels(recorded))


def why_more_kernels(linear: Mapping[tuple[int, str], BlockKernels]) -> str:
    """Why linear blocks have more kernels at a number of tokens that is no multiple of 4; empty if none has.

    Args:
        linear: (tokens, variant) -> the kernels of a linear block.
    """
    return " ".join(_why(linear, tokens, variants) for tokens, variants in padded(linear).items())


def _why(linear: Mapping[tuple[int, str], BlockKernels], tokens: int, variants: Sequence[str]) -> str:
    first = variants[0]
    whole = _at_fours(linear, first)[0]
    here, there = linear[tokens, first], linear[whole, first]
    text = (
        f"At {_tokens(tokens)} a linear block has {here.kernels} kernels with {_label(first)}, at {_tokens(whole)} "
        f"{there.kernels}: the FP8 product takes rows by fours, and block_scaled_mm copies codes and scales into as "
        f"many where their memory ends with the last token."
    )
    if None not in (here.copies, there.copies):
        text += f" Copies and fills are {here.copies} of the {here.kernels}, and {there.copies} of the {there.kernels}."
    others = [variant for (count, variant) in linear if count == tokens and variant not in variants]
    if not others:
        return f"{text} It is so in every variant."
    shown = ", ".join(f"{linear[tokens, name].kernels} with {_label(name)}" for name in others)
    return f"{text} What the library's ops quantise has room behind it and is read where it is: {shown}."


def _at_fours(linear: Mapping[tuple[int, str], BlockKernels], variant: str) -> list[int]:
    return sorted(tokens for tokens, name in linear if name == variant and not tokens % ROWS)


def _label(variant: str) -> str:
    return f"\u201c{STEP_VARIANTS[variant].label}\u201d"


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"
