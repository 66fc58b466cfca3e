"""One run of the decode step: every variant compiled, compared with the opaque one, traced, and timed, interleaved.

The samples of a number of tokens are taken in rounds, each in another order. All variants read the same weights and the
same states. A variant that fused other sites than it must, or computes something else, is WRONG and not timed.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fusionlab.observe.bench.results import Results, Row, Skipped, percentiles
from fusionlab.observe.bench.timer import CAPTURES, Timer, samples_of_captures
from fusionlab.observe.peak_memory import peak_bytes
from fusionlab.observe.step.block_traces import block_kernels, kernel_counts, predicted, trace_blocks
from fusionlab.observe.step.blocks import Result
from fusionlab.observe.step.decode_sizes import KINDS, QWEN3_NEXT, Sizes
from fusionlab.observe.step.decoder import Decoder, Weights, make_decoder, make_weights
from fusionlab.observe.step.site_codes import site_codes
from fusionlab.observe.step.step_variants import STEP_VARIANTS, CompiledBlock, compile_block, eager_roundings
from fusionlab.observe.trace import Kernel
from fusionlab.observe.whatif import WhatIfError
from fusionlib.commands.failure import in_a_line

#: What of the free memory the weights and states may take: the rest is for the graphs and the compiler.
MOST_MEMORY = 0.8
#: How far a block's result may be from the opaque variant's: the norm of the difference over the norm. Variants round
#: at different points. Where that changes a value by a hundredth, a tenth of its codes move by one step, and the errors
#: of the two quantisations are soon independent: 0.026 of the value each, in up to four of a block one after another.
CLOSE = 0.125
#: The same where Inductor keeps eager's roundings: only the order of sums is left to differ. That moves a code in
#: 100000, and what is computed from it for the same token.
CLOSE_WITH_ROUNDINGS = 0.02

#: What `Results.step` lists, by tokens, variant, kind of block or site.
LISTS = ("blocks", "memory", "outputs", "with_roundings", "codes", "gains", "predictions")

Blocks = Mapping[str, CompiledBlock]
Kernels = Mapping[str, tuple[Kernel, ...]]


@dataclass(frozen=True)
class StepSettings:
    """A run's settings; `layers` None for as many of the model's as fit into the memory."""

    tokens: tuple[int, ...] = (1, 4, 16, 64, 256)
    variants: tuple[str, ...] = tuple(STEP_VARIANTS)
    rounds: int = 30
    seed: int = 0
    device: str = "cuda"
    sizes: Sizes = QWEN3_NEXT
    layers: int | None = None


class StepRun:
    """One run. `traces` is a folder that the traces of blocks are written to; without a `timer` nothing is timed."""

    def __init__(
        self,
        settings: StepSettings,
        timer: Timer | None,
        results: Results,
        traces: Path,
        say: Callable[[str], None] = print,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.timer, self.results = settings, timer, results
        self.traces, self.say, self.save = traces, say, save
        self.order = random.Random(settings.seed)
        self.found = results.step
        self.found |= {name: [] for name in LISTS}

    def all(self) -> None:
        """Measure every number of tokens, then compare codes at the largest."""
        with torch.no_grad():
            weights = self.measure()
            if {"opaque", "fused"} <= set(self.settings.variants):
                self.codes(weights, max(self.settings.tokens))
                self.exact(weights, max(self.settings.tokens))
                self.save()

    def measure(self) -> Weights:
        """Measure every number of tokens; returns the weights that were made for it."""
        settings = self.settings
        layers = settings.layers or settings.sizes.layers_in(self.free_bytes(), max(settings.tokens))
        self.say(f"weights of {layers} layers of {settings.sizes.layers}")
        with torch.no_grad():
            weights = make_weights(settings.sizes, layers, settings.device, settings.seed)
            self.found |= {
                "sizes": asdict(settings.sizes),
                "layers": layers,
                "share_of_layers": layers / settings.sizes.layers,
                "recurrence": weights.recurrence,
            }
            for tokens in settings.tokens:
                self.at(weights, tokens)
                if self.timer is not None:
                    self.timer.release()
                self.save()
        return weights

    def free_bytes(self) -> int:
        """Bytes for weights and states; on a CPU enough for one turn of the order."""
        if self.settings.device != "cuda":
            return 0
        return int(MOST_MEMORY * torch.cuda.mem_get_info()[0])

    def at(self, weights: Weights, tokens: int) -> None:
        """Everything at one number of tokens."""
        decoder = make_decoder(weights, tokens, self.settings.device, self.settings.seed)
        ready = self.compiled(decoder)
        with torch._dynamo.config.patch(error_on_recompile=True):  # one code for all layers
            ready = self.compared(decoder, ready)
            kernels = self.traced(decoder, ready) if self.settings.device == "cuda" else {}
            if self.timer is not None:
                self.timed(decoder, ready, kernels, self.timer)

    def compiled(self, decoder: Decoder) -> dict[str, Blocks]:
        """The variants whose blocks compile and fuse what they must, after one step each, which measures its memory."""
        ready: dict[str, Blocks] = {}
        for name in self.settings.variants:
            variant = STEP_VARIANTS[name]
            blocks = {kind: compile_block(variant, kind) for kind in KINDS}
            try:
                self.run(decoder, blocks)  # compiles
                peak = peak_bytes(lambda blocks=blocks: self.run(decoder, blocks), self.settings.device)
            except Exception as error:  # a compiler can fail with anything; the other variants go on
                self.skip(decoder, name, in_a_line(error))
                continue
            problems = [problem for block in blocks.values() if (problem := block.problem())]
            for problem in problems:
                self.skip(decoder, name, problem, wrong=True)
            if not problems:
                ready[name] = blocks
            self.found["memory"].append({"tokens": decoder.tokens, "variant": name, "peak_bytes": peak})
            self.say(f"compiled {decoder.tokens} tokens {name}: {_fused(blocks) or 'nothing fused'}")
        return ready

    def run(self, decoder: Decoder, blocks: Blocks) -> torch.Tensor:
        """One step under a variant."""
        native = next(iter(blocks.values())).variant.native
        return decoder.step({kind: block.run for kind, block in blocks.items()}, native)

    def skip(self, decoder: Decoder, name: str, why: str, wrong: bool = False) -> None:
        """Note a variant that is not measured."""
        self.results.skipped.append(Skipped(case_name(decoder.tokens), name, why, wrong))
        self.say(f"{'WRONG   ' if wrong else 'skipped '} {decoder.tokens} tokens {name}: {why}")

    def compared(self, decoder: Decoder, ready: dict[str, Blocks]) -> dict[str, Blocks]:
        """The variants whose blocks compute what `opaque` computes, from the same inputs and states."""
        if "opaque" not in ready:
            return ready
        expected = {kind: block_result(decoder, ready["opaque"][kind]) for kind in KINDS}
        close = {}
        for name, blocks in ready.items():
            apart = {kind: differences(block_result(decoder, blocks[kind]), expected[kind]) for kind in KINDS}
            for kind, found in apart.items():
                self.found["outputs"].append({"tokens": decoder.tokens, "variant": name, "kind": kind, **found})
            far = [kind for kind, found in apart.items() if not found["relative"] <= CLOSE]
            for kind in far:
                distance = f"{apart[kind]['relative']:.2g} from the opaque one's; {CLOSE:g} is the most"
                self.skip(decoder, name, f"a {kind} block's result is {distance}", wrong=True)
            if not far:
                close[name] = blocks
        self.say(f"compared {decoder.tokens} tokens: {', '.join(close)}")
        return close

    def traced(self, decoder: Decoder, ready: dict[str, Blocks]) -> dict[str, dict[str, tuple[Kernel, ...]]]:
        """The kernels of a block of each kind, by variant; the traces are written."""
        kernels = {}
        for name, blocks in ready.items():
            try:
                path = self.traces / trace_name(name, decoder.tokens)
                trace = trace_blocks(decoder, blocks, self.settings.device, path)
            except Exception as error:  # a profiler that is not permitted; times can still be taken
                self.say(f"no trace {decoder.tokens} tokens {name}: {in_a_line(error)}")
                continue
            kernels[name] = block_kernels(trace)
            for kind, found in kernels[name].items():
                entry = {"tokens": decoder.tokens, "variant": name, "kind": kind, **kernel_counts(found)}
                self.found["blocks"].append(entry)
        return kernels

    def timed(self, decoder: Decoder, ready: dict[str, Blocks], kernels: Mapping[str, Any], timer: Timer) -> None:
        """Time every variant's captures, interleaved; a variant's samples are those of all its captures."""
        steps = {name: (lambda blocks=blocks: self.run(decoder, blocks)) for name, blocks in ready.items()}

        def failed(name: str, error: Exception) -> None:
            self.skip(decoder, name, in_a_line(error))

        samples = samples_of_captures(timer, steps, CAPTURES, self.settings.rounds, self.order, failed)
        moved = decoder.weights.sizes.step_bytes(len(decoder.states), decoder.tokens)
        rows = {name: _row(decoder.tokens, name, taken, moved) for name, taken in samples.items()}
        self.results.rows += rows.values()
        medians = (f"{row.variant} {row.median_us:.1f}" for row in rows.values())
        self.say(f"timed    {decoder.tokens} tokens: {', '.join(medians)} us")
        if "opaque" in rows:
            self.gains(decoder, rows, kernels)

    def gains(self, decoder: Decoder, rows: Mapping[str, Row], kernels: Mapping[str, Kernels]) -> None:
        """What each variant saves, and beside it what the trace of `opaque` predicts for `fused`."""
        medians = {name: row.median_us for name, row in rows.items()}
        for name, us in medians.items():
            share = 1.0 - us / medians["opaque"]
            self.found["gains"].append({"tokens": decoder.tokens, "variant": name, "share": share})
        kinds = [block.kind for block in decoder.weights.opaque]
        layers = {kind: kinds.count(kind) for kind in KINDS}
        traced, fused = kernels.get("opaque", {}), kernels.get("fused", {})
        try:
            found = predicted(traced, fused, layers, decoder.tokens, medians)
        except WhatIfError as error:
            self.say(f"no prediction at {decoder.tokens} tokens: {error}")
            return
        if found is not None:
            self.found["predictions"].append(found.as_json())

    def exact(self, weights: Weights, tokens: int) -> None:
        """Compare whole blocks of `fused` and `opaque` where Inductor keeps eager's roundings."""
        decoder = make_decoder(weights, tokens, self.settings.device, self.settings.seed)
        with eager_roundings():
            for kind in KINDS:
                opaque, fused = (
                    block_result(decoder, compile_block(STEP_VARIANTS[name], kind)) for name in ("opaque", "fused")
                )
                apart = differences(fused, opaque)
                self.found["with_roundings"].append({"tokens": tokens, "variant": "fused", "kind": kind, **apart})
                if not apart["relative"] <= CLOSE_WITH_ROUNDINGS:
                    distance = f"{apart['relative']:.2g} from the opaque one's; {CLOSE_WITH_ROUNDINGS:g} is the most"
                    why = f"with eager's roundings a {kind} block's result is {distance}"
                    self.skip(decoder, "fused", why, wrong=True)

    def codes(self, weights: Weights, tokens: int) -> None:
        """Compare the codes of every site."""
        for found in site_codes(weights, tokens, self.settings.seed):
            self.found["codes"].append({"tokens": tokens, **found.as_json()})
            problem = found.problem()
            if problem:
                self.results.skipped.append(Skipped(case_name(tokens), found.variant, problem, wrong=True))
                self.say(f"WRONG    {problem}")
        self.say(f"compared the codes of every site at {tokens} tokens")


def case_name(tokens: int) -> str:
    """The name of a case, in the form of the other benchmarks."""
    return f"step/{tokens}/strided/step"


def trace_name(variant: str, tokens: int | str) -> str:
    """The file of a trace, named as the recorder names its own; a pattern of files if a part is `*`."""
    return f"{variant}-{tokens}-graph.json.gz"


def block_result(decoder: Decoder, block: CompiledBlock) -> Result:
    """What the first layer of the block's kind returns, from fresh copies of its states."""
    index = decoder.first(block.kind)
    layer = decoder.weights.blocks(block.variant.native)[index]
    state = tuple(tensor.clone() for tensor in decoder.states[index])
    return block.run(layer, decoder.hidden, decoder.hidden.flip(-1), *state)


def differences(got: Result, expected: Result) -> dict[str, float]:
    """How far apart two results are: the norm of the difference over the norm, and the largest element's."""
    pairs = [(ours.float(), theirs.float()) for ours, theirs in zip(got, expected, strict=True)]
    return {
        "relative": max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs),
        "most": max(float((ours - theirs).abs().max()) for ours, theirs in pairs),
        "largest": max(float(theirs.abs().max()) for _, theirs in pairs),
    }


def _fused(blocks: Blocks) -> str:
    reports = ((kind, block.fusion.report()) for kind, block in blocks.items() if block.fusion is not None)
    return ", ".join(f"{kind} {report.fused_by}" for kind, report in reports if report.fused)


def _row(tokens: int, variant: str, samples: list[float], moved: int) -> Row:
    median, p10, p90 = percentiles(samples)
    return Row(
        case=case_name(tokens),
        shape="step",
        tokens=tokens,
        gate="strided",
        context="step",
        variant=variant,
        median_us=median,
        p10_us=p10,
        p90_us=p90,
        samples=len(samples),
        copies=1,
        bytes=moved,
        gb_s=moved / median / 1e3,
    )


def temporary_traces() -> tempfile.TemporaryDirectory[str]:
    """A folder for traces that are only counted."""
    return tempfile.TemporaryDirectory()
