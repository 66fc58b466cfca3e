"""One run of a whole model: for each workload every variant compiled, compared with the opaque one, traced, and timed.

All variants read the same weights and caches. A variant that fused other sites than it must, or refused one, or is far
from the opaque one is WRONG and not timed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fusionlab.observe.bench.results import Results, Skipped, percentiles
from fusionlab.observe.bench.timer import CAPTURES, Timer, samples_of_captures
from fusionlab.observe.model.accuracy import distance
from fusionlab.observe.model.channel_order import other_order
from fusionlab.observe.model.recurrence_ops import recurrences
from fusionlab.observe.model.whole_model import (
    MOST_MEMORY,
    TURN,
    WholeModel,
    layers_in,
    make_config,
    make_model,
    modelling,
)
from fusionlab.observe.model.workload import DECODE, PREFILL, RunModel, Work, Workload, forward
from fusionlab.observe.peak_memory import peak_bytes
from fusionlab.observe.record import captured, cleaned_trace, profiled
from fusionlab.observe.step.block_traces import kernel_counts, predicted
from fusionlab.observe.step.step_variants import STEP_VARIANTS, StepVariant, compiled, eager_roundings
from fusionlab.observe.structure import steps
from fusionlab.observe.trace import Kernel
from fusionlab.observe.tuning import own_tuning
from fusionlab.observe.whatif import WhatIfError
from fusionlib.block_mm import BLOCK
from fusionlib.commands.failure import in_a_line
from fusionlib.rewrite import FusionPass, Report

Result = TypeVar("Result")

#: The variants of a step that a model has: their activations are quantised by an opaque op.
MODEL_VARIANTS = ("opaque", "gated_norm", "fused")
#: What each fusion can take of a layer, by the layer's kind and the fusion's name, as a report counts it: every
#: quantisation is a site, and transformers has q, k and v, and gate and up, as layers of their own with one each.
SITES = {
    "linear_attention": {"gated_norm": 1, "rms_norm": 3, "act_and_mul": 1},
    "full_attention": {"rms_norm": 5, "sigmoid_gate": 1, "act_and_mul": 1},
}
#: How far a variant's last logits may be from the opaque one's: the norm of the difference over the norm; independent
#: ones are 1.4 apart. This finds a result that has nothing to do with the other and no error in one layer: random
#: weights leave most tokens' experts to chance, so that a model with its sums in another order is far from itself too.
CLOSE = 1.2
#: How far apart the fused and the opaque model of `TURN` layers may be where both keep eager's roundings: the median
#: token's root mean square difference over the logits' deviation. It was 0.015 on an H100; one wrong norm makes it 0.4.
CLOSE_ROUNDED = 0.05
#: A prompt takes longer than where its operands lie could tell.
PREFILL_CAPTURES = 2
#: What of the memory that is free beside weights and caches captures may keep: each keeps the most that its step uses.
_CAPTURES_MEMORY = 0.7
_CHOICE_ROUNDS = 5  # to choose among compilations
_TRACE_BYTES = 4_000_000  # a whole model's; only its kernels are read
_STEP = "step"

#: Behind a variant's name: with eager's roundings, with its sums in another order, or both in this order.
ROUNDED, OTHER_ORDER = "_rounded", "_other_order"

#: What `Results.model` lists, by phase, tokens and variant.
LISTS = ("times", "memory", "kernels", "outputs", "gains", "predictions", "accuracy", "sites", "compilations")


@dataclass(frozen=True)
class ModelSettings:
    """A run's settings; `layers` None for as many of the model's as fit into the memory, `experts` None for all.

    `compilations`: how often each variant is compiled; the fastest is measured. Inductor tunes its kernels anew each
    time, by the clock, and a step of many short kernels is a per cent faster or slower by what it draws.
    """

    workloads: tuple[Workload, ...] = (
        *(Workload(DECODE, tokens) for tokens in (1, 4, 16, 64, 128)),
        *(Workload(PREFILL, tokens) for tokens in (1024, 8192)),
    )
    variants: tuple[str, ...] = MODEL_VARIANTS
    rounds: int = 30
    seed: int = 0
    device: str = "cuda"
    context: int = 1024
    layers: int | None = None
    experts: int | None = None
    compilations: int = 1


@dataclass(frozen=True)
class CompiledModel:
    """The model compiled in one way, and the pass that saw its graph."""

    variant: StepVariant
    run: RunModel
    fusion: FusionPass | None

    @property
    def report(self) -> Report | None:
        """What the pass did, after the first call; None if there is no pass."""
        return None if self.fusion is None else self.fusion.report()

    def problem(self, model: WholeModel) -> str | None:
        """Why the pass did not do what it must, after the first call; None if it did or there is none."""
        report = self.report
        if report is None:
            return None
        names = {fusion.name for fusion in self.variant.fusions or ()}
        counted: Counter[str] = Counter()
        for kind, sites in SITES.items():
            counted.update({name: sites[name] * model.layers_of(kind) for name in names & sites.keys()})
        expected = dict(+counted)  # without fusions that the model has no layer for
        if report.fused_by != expected or report.refused:
            return f"the model fused {report.fused_by}, where {expected} was expected:\n{report}"
        return None


#: A compiled model, and the most memory of its step in bytes, None where that is unknown.
Tried = tuple[CompiledModel, int | None]


class ModelRun:
    """One run. `traces` is a folder for traces while they are read; without a `timer` nothing is timed."""

    def __init__(
        self,
        settings: ModelSettings,
        timer: Timer | None,
        results: Results,
        traces: Path,
        say: Callable[[str], None] = print,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.timer, self.results = settings, timer, results
        self.traces, self.say, self.save = traces, say, save
        self.order = random.Random(settings.seed)
        self.found = results.model
        self.found |= {name: [] for name in LISTS}

    def all(self) -> None:
        """Measure every workload, and compare the logits of the longest prompt."""
        settings = self.settings
        config = make_config(experts=settings.experts, small=settings.device != "cuda")
        layers = settings.layers or layers_in(self._free_bytes(), config)
        self.say(f"{layers} of {config.num_hidden_layers} layers, {config.num_experts} experts")
        with torch.no_grad(), recurrences(modelling(), settings.device) as recurrence:
            model = make_model(config, layers, settings.device, settings.seed)
            self.say(model.quantised.summary)
            self.found |= {
                "model": "qwen3_next",
                "sizes": _sizes(config),
                "layers": layers,
                "layers_of_all": model.layers_of_all,
                "recurrence": recurrence,
                "linears": model.quantised.summary,
            }
            prompts = [each.tokens for each in settings.workloads if each.phase == PREFILL]
            for workload in settings.workloads:
                longest = workload.phase == PREFILL and workload.tokens == max(prompts)
                self.at(model, workload, accuracy=longest)
                if self.timer is not None:
                    self.timer.release()
                self.save()

    def _free_bytes(self) -> int:
        """Bytes for weights; on a CPU enough for one turn of layers."""
        return int(MOST_MEMORY * torch.cuda.mem_get_info()[0]) if self.settings.device == "cuda" else 0

    def at(self, model: WholeModel, workload: Workload, accuracy: bool) -> None:
        """Everything for one workload; `accuracy` says whether the logits of all its tokens are compared."""
        work = Work(model, workload, self.settings.context, self.settings.seed)
        ready = self.compared(work, self.compiled(work))
        if accuracy and "opaque" in ready:
            self.accuracy(work, ready)
        kernels = self.traced(work, ready) if self.settings.device == "cuda" else {}
        if self.timer is not None and ready:
            self.timed(work, ready, kernels, self.timer)

    def compiled(self, work: Work) -> dict[str, CompiledModel]:
        """The variants that compile and fuse what they must, after one step each, which measures its memory."""
        ready = {}
        for name in self.settings.variants:
            if (found := self._fastest(work, name, self._tried(work, name))) is not None:
                ready[name], peak_of_step = found
                self._note("memory", work, name, peak_bytes=peak_of_step)
                report = ready[name].report
                if report is not None:
                    counts = {"refused": len(report.refused), "unclaimed": len(report.unclaimed)}
                    self._note("sites", work, name, fused=report.fused_by, **counts)
                self.say(f"compiled {work.workload} {name}: {report.summary if report else 'no pass'}")
        return ready

    def _tried(self, work: Work, name: str) -> list[Tried]:
        """A variant's compilations with their memory, each of several tuned anew; none if one of them fails."""

        def peak(run: RunModel) -> int | None:
            work.step(run)  # compiles
            return peak_bytes(lambda: work.step(run), self.settings.device)

        tried: list[Tried] = []
        several = self.timer is not None and self.settings.compilations > 1
        for _ in range(self.settings.compilations if several else 1):
            with own_tuning(keep_binaries=True) if several else nullcontext():
                if (found := self._made(work, name, peak)) is None:
                    return []
            tried.append(found)
        return tried

    def _fastest(self, work: Work, name: str, tried: Sequence[Tried]) -> Tried | None:
        """The fastest of `tried`, if there is any and each can be captured."""
        if len(tried) < 2 or self.timer is None:
            return tried[0] if tried else None
        failures: list[Exception] = []
        calls = {str(number): (lambda made=made: work.step(made.run)) for number, (made, _) in enumerate(tried)}
        captures = self._captures(work, [peak for _, peak in tried])
        samples = samples_of_captures(
            self.timer, calls, captures, _CHOICE_ROUNDS, self.order, lambda number, error: failures.append(error)
        )
        self.timer.release()
        if failures:
            self._skip(work, name, in_a_line(failures[0]))
            return None
        medians = {number: percentiles(taken)[0] for number, taken in samples.items()}
        self._note("compilations", work, name, median_us=sorted(medians.values()), captures=captures)
        return tried[int(min(medians, key=medians.__getitem__))]

    def _made(
        self, work: Work, name: str, first: Callable[[RunModel], Result], ending: str = ""
    ) -> tuple[CompiledModel, Result] | None:
        """A variant and what its first call by `first` gives; None if it fails or fuses other sites than it must."""
        variant = STEP_VARIANTS[name]
        fusion = variant.make_pass()
        made = CompiledModel(variant, compiled(forward(work.model), fusion), fusion)
        try:
            result = first(made.run)
        except Exception as error:  # a compiler can fail with anything; the other variants go on
            self._skip(work, name + ending, in_a_line(error))
            return None
        if (problem := made.problem(work.model)) is not None:
            self._skip(work, name + ending, problem, wrong=True)
            return None
        return made, result

    def compared(self, work: Work, ready: dict[str, CompiledModel]) -> dict[str, CompiledModel]:
        """The variants whose logits have to do with those of `opaque`; see `CLOSE`."""
        if "opaque" not in ready:
            return ready
        expected = work.first(ready["opaque"].run).float()
        close = {}
        for name, made in ready.items():
            apart = float((work.first(made.run).float() - expected).norm() / expected.norm())
            self._note("outputs", work, name, relative=apart)
            if apart <= CLOSE:
                close[name] = made
            else:
                far = f"its logits are {apart:.2g} from the opaque one's; {CLOSE:g} is the most"
                self._skip(work, name, far, wrong=True)
        self.say(f"compared {work.workload}: {', '.join(close)}")
        return close

    def accuracy(self, work: Work, ready: Mapping[str, CompiledModel]) -> None:
        """The logits of all tokens: every variant's beside the opaque one's, and what is noise.

        Noise is the opaque one beside itself with its sums in another order, and beside itself with the roundings to
        bf16 that eager performs and Inductor leaves out. Where both keep these, fused and opaque differ by sums alone:
        that is compared too, beside the rounded opaque one with its sums in another order.
        """
        with eager_roundings():
            every = {**ready, **self.rounded(work, ready)}
        hidden = {name: work.hidden(made.run)[0].clone() for name, made in every.items()}
        with other_order(work.model.model, range(work.model.config.hidden_size // BLOCK)[::-1]) as back:
            for name in ("opaque", "opaque" + ROUNDED):
                if name in every:
                    hidden[name + OTHER_ORDER] = work.hidden(every[name].run)[0][:, back].clone()
        for name in hidden:
            against = "opaque" + ROUNDED if ROUNDED in name and name != "opaque" + ROUNDED else "opaque"
            if name != against and against in hidden:
                self.compare(work, name, against, hidden)

    def rounded(self, work: Work, ready: Mapping[str, CompiledModel]) -> dict[str, CompiledModel]:
        """The opaque and the fused variant compiled with eager's roundings, if they compile and fuse what they must."""
        found = {name: self._made(work, name, work.hidden, ROUNDED) for name in ("opaque", "fused") if name in ready}
        return {name + ROUNDED: made[0] for name, made in found.items() if made is not None}

    def compare(self, work: Work, name: str, against: str, hidden: Mapping[str, torch.Tensor]) -> None:
        """Note how far the logits of `name` are from those of `against`; wrong if the model is small enough to tell."""
        found = distance(work.model.model.lm_head, hidden[against], hidden[name])
        self._note("accuracy", work, name, against=against, **found.as_json())
        self.say(
            f"logits of {work.workload}, {name} beside {against}: KL {found.kl.mean:.2e}, "
            f"the same first word {found.top1:.1%}, apart {found.difference.mean:.2e} of {found.logits:.2e}"
        )
        apart = found.difference.p50 / found.logits
        if name == "fused" + ROUNDED and self.found["layers"] == TURN and not apart <= CLOSE_ROUNDED:
            far = f"with eager's roundings its logits are {apart:.2g} apart; {CLOSE_ROUNDED:g} is the most"
            self._skip(work, name, far, wrong=True)

    def traced(self, work: Work, ready: Mapping[str, CompiledModel]) -> dict[str, tuple[Kernel, ...]]:
        """The kernels of a whole step, by variant, from the second of two replays of its CUDA graph."""
        kernels = {}
        for name, made in ready.items():
            try:
                replay = captured(lambda made=made: work.step(made.run))
                trace = cleaned_trace(profiled([replay] * 2, "cuda"), self.traces / "step.json.gz", _TRACE_BYTES)
            except Exception as error:  # a profiler that is not permitted; times can still be taken
                self.say(f"no trace of {work.workload} {name}: {in_a_line(error)}")
                continue
            kernels[name] = steps(trace)[-1].kernels
            self._note("kernels", work, name, **kernel_counts(kernels[name]), by_name=_by_name(kernels[name]))
        return kernels

    def timed(
        self,
        work: Work,
        ready: Mapping[str, CompiledModel],
        kernels: Mapping[str, tuple[Kernel, ...]],
        timer: Timer,
    ) -> None:
        """Time every variant, interleaved, and say what it saves."""
        calls = {name: (lambda made=made: work.step(made.run)) for name, made in ready.items()}

        def failed(name: str, error: Exception) -> None:
            self._skip(work, name, in_a_line(error))

        captures = self._captures(work, self._peaks(work))
        samples = samples_of_captures(timer, calls, captures, self.settings.rounds, self.order, failed)
        medians: dict[str, float] = {}
        for name, taken in samples.items():
            medians[name], p10, p90 = percentiles(taken)
            times = {"median_us": medians[name], "p10_us": p10, "p90_us": p90, "samples": len(taken)}
            self._note("times", work, name, **times, captures=captures)
        self.say(f"timed    {work.workload}: {', '.join(f'{name} {us:.1f}' for name, us in medians.items())} us")
        if "opaque" in medians:
            self.gains(work, medians, kernels)

    def _peaks(self, work: Work) -> list[int | None]:
        """The memory of each variant's step."""
        return [entry["peak_bytes"] for entry in self.found["memory"] if _is_of(entry, work.workload)]

    def _captures(self, work: Work, peaks: Sequence[int | None]) -> int:
        """How often each of some steps, of these peaks, is captured: as often as fits, at most as its phase has it."""
        wanted = CAPTURES if work.workload.phase == DECODE else PREFILL_CAPTURES
        if self.settings.device != "cuda":
            return wanted
        torch.cuda.empty_cache()
        room = _CAPTURES_MEMORY * torch.cuda.mem_get_info()[0]
        return max(1, min(wanted, int(room / sum(filter(None, peaks)))))

    def gains(self, work: Work, medians: Mapping[str, float], kernels: Mapping[str, tuple[Kernel, ...]]) -> None:
        """What each variant saves, and beside it what the trace of `opaque` predicts for `fused`."""
        for name, us in medians.items():
            self._note("gains", work, name, share=1.0 - us / medians["opaque"])
        traced, fused = ({_STEP: kernels.get(name, ())} for name in ("opaque", "fused"))
        try:
            found = predicted(traced, fused, {_STEP: 1}, work.workload.tokens, medians)
        except WhatIfError as error:
            self.say(f"no prediction for {work.workload}: {error}")
            return
        if found is not None:
            self.found["predictions"].append({"phase": work.workload.phase, **found.as_json()})

    def _note(self, what: str, work: Work, variant: str, **values: Any) -> None:
        self.found[what].append({**asdict(work.workload), "variant": variant, **values})

    def _skip(self, work: Work, name: str, why: str, wrong: bool = False) -> None:
        self.results.skipped.append(Skipped(str(work.workload), name, why, wrong))
        self.say(f"{'WRONG   ' if wrong else 'skipped '} {work.workload} {name}: {why}")


def _is_of(entry: Mapping[str, Any], workload: Workload) -> bool:
    return (entry["phase"], entry["tokens"]) == (workload.phase, workload.tokens)


def _by_name(kernels: Sequence[Kernel]) -> dict[str, list[float]]:
    """How many kernels of each name a step runs, and their microseconds together; Inductor's numbers are dropped."""
    found: dict[str, list[float]] = {}
    for kernel in kernels:
        entry = found.setdefault(re.sub(r"_\d+$", "", kernel.name), [0, 0.0])
        entry[0] += 1
        entry[1] += kernel.duration_us
    return {name: [count, round(us, 2)] for name, (count, us) in found.items()}


def _sizes(config: Any) -> dict[str, int]:
    """The sizes of a configuration that a reader of the document looks for."""
    names = (
        "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "linear_num_value_heads",
        "linear_num_key_heads", "linear_value_head_dim", "linear_key_head_dim", "num_experts", "num_experts_per_tok",
        "moe_intermediate_size", "shared_expert_intermediate_size",
    )  # fmt: skip
    return {name: getattr(config, name) for name in names}
