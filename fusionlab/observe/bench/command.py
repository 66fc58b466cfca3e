"""`fusionlib bench`: the kernel beside what a user has today and beside the light.

Examples::

    fusionlib bench --quick                       four sizes of one shape, few rounds
    fusionlib bench --out data/benchmarks         everything, written to data/benchmarks/<device>.json
    fusionlib bench --sweep --tokens 1 64 8192    launch configurations, for the heuristic's thresholds
    fusionlib bench --step --out data/benchmarks  a decode step of Qwen3-Next-like blocks: what the fusions save
    fusionlib bench --model qwen3_next            the whole model of transformers, as many layers as fit
    fusionlib bench --check --tokens 4            on a CPU: no times, only whether the variants agree with eager

Parts of the lab that stand on the benchmark add measurements of their own: see `Measurement`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.files import results_file
from fusionlib.commands.errors import UsageError

VARIANTS = ("eager", "two_kernel", "inductor", "aiter", "fla", "fused", "light", "reciprocal")
MODELS = ("qwen3_next",)
STEP_VARIANTS = ("opaque", "inductor", "gated_norm", "fused")
CONTEXTS = ("alone", "producer", "chain")
GATES = ("contiguous", "strided")
PRODUCERS = {
    "gated_norm": ("32x128", "16x128", "48x128", "64x128", "mamba2", "per_token"),
    "rms_norm": (
        *("norm_2048", "norm_4096", "norm_5120", "norm_7168"),
        *("add_norm_2048", "add_norm_4096", "add_norm_5120", "add_norm_7168"),
    ),
    "act_and_mul": ("silu_512", "silu_5632", "silu_14336", "gate_16x256", "gate_32x256"),
}
SHAPES = tuple(shape for shapes in PRODUCERS.values() for shape in shapes)
_CHECK_TOKENS = (1, 64)
_COMPILATIONS = 3
_ON_A_CPU = (
    "no GPU is visible, and a CPU's times say nothing of a GPU's kernels: nothing can be measured here. "
    "--check says without times whether the variants that run on a CPU agree with eager"
)


@dataclass(frozen=True)
class Measurement:
    """Something else that the command can measure, instead of the variants: a run of its own, chosen by `--name`.

    `measure(tokens, timer, results, *, rounds, seed, device, save)` adds to `results`, a `Results`; `tokens` is None
    where none are named, and `save()` is called after each case.
    """

    name: str
    help: str
    measure: Callable[..., None]


def register(subparsers: argparse._SubParsersAction, measurements: Iterable[Measurement] = ()) -> None:
    """Add the `bench` parser to `subparsers`, with `measurements` that are not the benchmark's own."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the fused kernel beside the alternatives and the light (needs a GPU)",
        description="Time the fused kernel beside what a user has today and beside a kernel that only moves the bytes.",
    )
    parser.add_argument("--quick", action="store_true", help="one shape, four sizes, 10 rounds")
    parser.add_argument("--tokens", nargs="+", type=_positive, help="default: 1 to 32768 in ten steps")
    parser.add_argument("--producers", nargs="+", choices=PRODUCERS, help="the shapes of these; default: all")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=f"of {', '.join(SHAPES)}; default: all"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS[:-1]), help="default: all but the last"
    )
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES), help="default: both")
    parser.add_argument("--contexts", nargs="+", choices=CONTEXTS, default=list(CONTEXTS), help="default: all")
    parser.add_argument("--rounds", type=_positive, default=30, help="samples of each variant; default: %(default)s")
    parser.add_argument(
        "--compilations",
        type=_positive,
        help=f"keep the fastest of so many by Inductor; default: {_COMPILATIONS}, and 1 of --model",
    )
    parser.add_argument("--seed", type=int, default=0, help="of inputs and of the order; default: %(default)s")
    parser.add_argument("--sweep", action="store_true", help="sweep launch configurations instead")
    for measurement in measurements:
        parser.add_argument(
            f"--{measurement.name}", dest="instead", action="store_const", const=measurement, help=measurement.help
        )
    parser.add_argument("--step", action="store_true", help="a decode step of Qwen3-Next-like blocks instead")
    parser.add_argument(
        "--step-variants",
        nargs="+",
        choices=STEP_VARIANTS,
        help="of --step and --model; default: all, for --model all but inductor",
    )
    parser.add_argument(
        "--model", choices=MODELS, help="a whole model of transformers instead: --tokens sequences decode a token each"
    )
    parser.add_argument("--prompts", nargs="+", type=_positive, help="of --model: lengths of prompts to read")
    parser.add_argument("--experts", type=_positive, help="of --model; default: all 512")
    parser.add_argument(
        "--layers", type=_positive, help="of --step and --model; default: all 48, or as many as fit, by fours"
    )
    parser.add_argument(
        "--context-length", type=_positive, help="tokens in the caches of --step and --model; default: 1024"
    )
    parser.add_argument("--record", type=Path, help="with --step: a folder for <device>/, its blocks' cleaned traces")
    parser.add_argument("--record-tokens", type=_positive, help="whose traces --record keeps; default: 16, or the only")
    parser.add_argument("--dependent-launch", action="store_true", help="also programmatic dependent launch (NVIDIA)")
    parser.add_argument("--check", action="store_true", help="check results only, measure nothing; also on a CPU")
    parser.add_argument(
        "--out",
        type=Path,
        help="a .json file, or a folder for <device>.json, -sweep, -versions, -chain, -shapes, -step, -model",
    )
    parser.set_defaults(run=run, instead=None)


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if not 1 <= value <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to {1 << 20}")
    return value


def run(namespace: argparse.Namespace) -> int:
    """Measure, or check; returns 0, 1 if a result is wrong, or 2 if there is nothing to measure with."""
    import torch

    gpu = torch.cuda.is_available()
    instead: Measurement | None = namespace.instead
    if instead is not None and (namespace.sweep or namespace.check or namespace.dependent_launch):
        raise UsageError(f"--{instead.name} is a run of its own; leave --sweep, --check and --dependent-launch out")
    if namespace.record_tokens and not namespace.record:
        raise UsageError("--record-tokens belongs to --record; add it or leave --record-tokens out")
    if namespace.step and (namespace.sweep or instead is not None or namespace.dependent_launch):
        raise UsageError("--step is a run of its own; leave --sweep, --versions and --dependent-launch out")
    if namespace.model and (namespace.step or namespace.sweep or instead is not None or namespace.dependent_launch):
        raise UsageError("--model is a run of its own; leave --step, --sweep, --versions and --dependent-launch out")
    if not namespace.step and namespace.record:
        raise UsageError("--record belongs to --step; add it or leave --record out")
    if namespace.step and namespace.compilations:
        raise UsageError("--compilations is not of --step, which compiles each block once; leave it out")
    if not (namespace.step or namespace.model) and (namespace.layers or namespace.context_length):
        raise UsageError("--layers and --context-length belong to --step and --model; add one or leave them out")
    if not namespace.model and (namespace.prompts or namespace.experts):
        raise UsageError("--prompts and --experts belong to --model; add it or leave them out")
    if not gpu and not namespace.check:
        raise UsageError(_ON_A_CPU)
    if namespace.check and namespace.out is not None:
        raise UsageError("--check measures nothing, so there is nothing to write; leave --out out")
    if gpu and not namespace.check and (problem := _fp8_problem()):
        raise UsageError(problem)
    make_timer: Callable[[], Any] | None = None
    if not namespace.check:
        from fusionlab.observe.bench.timer import GraphTimer

        make_timer = GraphTimer
    return bench(namespace, "cuda" if gpu else "cpu", make_timer)


def _fp8_problem() -> str | None:
    """Why our kernel does not run on this GPU and there is nothing to measure, or None."""
    import torch

    from fusionlib.contract import device_problem

    return device_problem(torch.device("cuda", torch.cuda.current_device()), torch.float8_e4m3fn)


def bench(namespace: argparse.Namespace, device: str, make_timer: Callable[[], Any] | None) -> int:
    """The command with an injected timer, so that everything but the device can be tested without a GPU."""
    if namespace.step:
        from fusionlab.observe.step.command import run_step

        return run_step(namespace, device, make_timer, _command(namespace))
    if namespace.model:
        from fusionlab.observe.model.model_command import run_model

        return run_model(namespace, device, make_timer, _command(namespace))
    from fusionlab.observe.bench import run as runs
    from fusionlab.observe.bench.compilations import FastestCompilation
    from fusionlab.observe.bench.results import Results, write_results
    from fusionlab.observe.bench.sweep import TunedLight, sweep_all
    from fusionlab.observe.manifest import make_manifest
    from fusionlab.observe.tuning import own_tuning

    settings = runs.Settings(namespace.rounds, namespace.seed, _compilations(namespace), device)
    settings = runs.quick(settings) if namespace.quick else settings
    listed = _cases(namespace)
    if make_timer is None:
        results = Results({})
        runs.check_all(listed, namespace.variants, settings, results)
        return _report_check(results)
    timer = make_timer()
    results = Results(runs.conditions(timer, settings))
    manifest = make_manifest(_command(namespace), namespace.seed, libraries=_libraries(namespace))
    path = _destination(namespace, manifest.machine.slug)

    def save() -> None:
        """Write what has been measured so far, so that an interrupted run loses only one case."""
        if path is not None:
            write_results(path, results, manifest)

    with own_tuning(keep_binaries=True):
        if namespace.instead is not None:
            namespace.instead.measure(
                namespace.tokens, timer, results, rounds=settings.rounds, seed=settings.seed, device=device, save=save
            )
        elif namespace.sweep:
            sweep_all(listed, timer, settings, results, save=save)
        else:
            tuned = TunedLight(timer, runs.quick(settings))
            fastest = FastestCompilation(timer, settings)
            plan = runs.check_all(listed, namespace.variants, settings, results, light_config=tuned, fastest=fastest)
            runs.time_all(plan, timer, settings, results, save=save)
            _judge(results)
        if namespace.dependent_launch:
            _dependent(timer, settings, results)
    save()
    from fusionlab.observe.bench.text import text

    print(text(results, manifest))
    if path is not None:
        print(f"results: {path}")
    return 1 if any(entry.wrong for entry in results.skipped) else 0


def _destination(namespace: argparse.Namespace, device: str) -> Path | None:
    """The file to write, after creating its folder; None if nothing is to be written."""
    return results_file(namespace.out, f"{device}{_suffix(namespace)}")


def _suffix(namespace: argparse.Namespace) -> str:
    """A file name suffix for a run other than the one of everything, or of the base shape alone."""
    if namespace.sweep:
        return "-sweep"
    if namespace.instead is not None:
        return f"-{namespace.instead.name}"
    if "alone" not in namespace.contexts:
        return "-chain"
    shapes = _shapes(namespace)
    if shapes and not set(shapes) & set(PRODUCERS["gated_norm"]):
        return "-producers"
    return "-shapes" if shapes and SHAPES[0] not in shapes else ""


def _cases(namespace: argparse.Namespace) -> list:
    from fusionlab.observe.bench.cases import BASE, QUICK_TOKENS, TOKENS, cases

    brief = namespace.quick or namespace.check
    sizes = _CHECK_TOKENS if namespace.check else QUICK_TOKENS if namespace.quick else TOKENS
    shapes = _shapes(namespace) or ((BASE,) if namespace.quick else SHAPES)
    contexts = [name for name in namespace.contexts if name == "alone"] if brief else namespace.contexts
    return list(cases(namespace.tokens or sizes, shapes, namespace.gates, contexts))


def _shapes(namespace: argparse.Namespace) -> tuple[str, ...]:
    """The shapes that were asked for, by their own names and by those of their producers; none if none were."""
    of_producers = (shape for name in namespace.producers or () for shape in PRODUCERS[name])
    return tuple(dict.fromkeys((*(namespace.shapes or ()), *of_producers)))


def _report_check(results: Any) -> int:
    """Print the result of a check; returns the exit code."""
    from fusionlab.observe.bench.text import skipped

    print(skipped(results) or "every variant was checked")
    wrong = sum(entry.wrong for entry in results.skipped)
    print(f"{wrong} wrong results; nothing was measured")
    return 1 if wrong else 0


def _judge(results: Any) -> None:
    from fusionlab.observe.bench.targets import as_json, verdicts

    results.verdicts = as_json(verdicts(results))


def _dependent(timer: Any, settings: Any, results: Any) -> None:
    from fusionlab.observe.bench import dependent
    from fusionlab.observe.bench.results import Skipped

    problem = dependent.dependent_problem()
    if problem:
        results.skipped.append(Skipped("dependent launch", "light", problem))
    else:
        results.dependent = dependent.measure(timer, settings)


def _libraries(namespace: argparse.Namespace) -> dict[str, str] | None:
    from fusionlab.observe.bench.variants import package_versions

    return package_versions(tuple(namespace.variants)) or None


def _command(namespace: argparse.Namespace) -> str:
    """The command to repeat the run, without its output path."""
    words = ["fusionlib bench"]
    if namespace.step or namespace.model:
        words += ["--step"] if namespace.step else ["--model", namespace.model]
        own = () if namespace.step else ("prompts", "experts", "compilations")
        for option in ("tokens", *own, "step_variants", "layers", "context_length", "rounds", "seed"):
            value = vars(namespace)[option]
            given = value if isinstance(value, list) else [] if value is None else [value]
            words += [f"--{option.replace('_', '-')}", *map(str, given)] if given else []
        return " ".join(words)
    if namespace.instead is not None:
        words += [f"--{namespace.instead.name}"]
        words += ["--tokens", *map(str, namespace.tokens)] if namespace.tokens else []
        return " ".join([*words, "--rounds", str(namespace.rounds), "--seed", str(namespace.seed)])
    words += [f"--{flag.replace('_', '-')}" for flag in ("quick", "sweep", "dependent_launch") if vars(namespace)[flag]]
    for option in ("tokens", "producers", "shapes", "variants", "gates", "contexts"):
        if vars(namespace)[option]:
            words += [f"--{option}", *map(str, vars(namespace)[option])]
    words += ["--rounds", str(namespace.rounds), "--compilations", str(_compilations(namespace))]
    return " ".join([*words, "--seed", str(namespace.seed)])


def _compilations(namespace: argparse.Namespace) -> int:
    """How often a variant of the kernels' benchmark is compiled."""
    return namespace.compilations or _COMPILATIONS
