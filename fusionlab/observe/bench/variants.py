"""The ways of computing a producer and its quantisation that are measured side by side.

    eager       a. plain PyTorch, an operator at a time
    two_kernel  b. the producer compiled, the quantisation an opaque op: the pull request's two kernels
    inductor    c. both left to Inductor
    aiter       d. AITER's published Triton kernel, if installed
    fla         d. flash-linear-attention's gated norm and the quantisation op, if installed
    fused       e. ours
    light       f. moves the same bytes and computes nothing
    reciprocal  ours with y * (1 / scale) for y / scale: what the exact division costs, and what it buys; on request

A variant is built for one case: a function of the producer's tensors that returns codes, scale in the layout of
`case.quant`, and what else the producer returns, newly allocated, since outputs must rotate like inputs. What other
kernels do not support (a strided gate, another scale layout) is copied for them inside the call, as their callers must
do.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fusionlab.observe.bench.cases import Case
from fusionlab.observe.record import own_code
from fusionlib import op, reference
from fusionlib.commands.failure import in_a_line
from fusionlib.spec import GatedNorm

Outputs = tuple[torch.Tensor, ...]
Call = Callable[..., Outputs]


class Unavailable(RuntimeError):
    """A variant that is missing, or does not support a case: the message says why."""


@dataclass(frozen=True)
class Variant:
    """One way of computing the path.

    Args:
        name: the key of `VARIANTS`.
        label: what a table calls it.
        make: case -> call; raises Unavailable.
        exact: whether all of eager's roundings are reproduced, so that the exact bounds apply; see `exact_in`.
        computes: False for the light.
        compiled: whether Inductor chooses its launch.
        package: the distribution it needs besides fusionlib's dependencies, or None.
    """

    name: str
    label: str
    make: Callable[[Case], Call]
    exact: bool = True
    computes: bool = True
    compiled: bool = False
    package: str | None = None

    def exact_in(self, case: Case) -> bool:
        """Whether all of eager's roundings are reproduced in `case`.

        Inductor keeps fused values in float32. The compiled producer therefore reproduces the final rounding, which is
        written to memory, but none of the model's earlier ones.
        """
        return self.exact and (self.name != "two_kernel" or case.producer.writes_every_rounding)


def _eager(case: Case) -> Call:
    producer, quant = case.producer, case.quant

    def eager(*tensors: torch.Tensor) -> Outputs:
        value, *further = producer.reference(*tensors)
        return *reference.group_quant(value, quant), *further

    return eager


def _two_kernel(case: Case) -> Call:
    producer, quant = case.producer, case.quant

    def two_kernel(*tensors: torch.Tensor) -> Outputs:
        value, *further = producer.reference(*tensors)
        return *op.group_quant(value, quant), *further

    return torch.compile(own_code(two_kernel), dynamic=False, fullgraph=True)


def _inductor(case: Case) -> Call:
    return torch.compile(own_code(_eager(case)), dynamic=False, fullgraph=True)


def _fused(case: Case) -> Call:
    producer, quant = case.producer, case.quant

    def fused(*tensors: torch.Tensor) -> Outputs:
        return producer.fused(tensors, quant)

    return fused


def _gated_norm(case: Case) -> GatedNorm:
    """The spec of a gated norm, which is all that another library's kernel here computes."""
    if not isinstance(case.producer.spec, GatedNorm):
        raise Unavailable("its kernel here is of the gated norm")
    return case.producer.spec


def _aiter(case: Case) -> Call:
    # Signature: AITER aiter/ops/triton/quant/fused_fp8_quant.py, as vLLM's _aiter_ops.py calls it (PR #40710).
    norm, quant = _gated_norm(case), case.quant
    kernel = _imported("aiter.ops.triton.quant", "fused_rms_gated_fp8_group_quant")
    if (norm.norm_size, quant.group_size) != (128, 128) or not norm.norm_before_gate:
        raise Unavailable("takes a norm and groups of 128, norm before gate, and nothing else")

    def aiter(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> Outputs:
        rows, gates = (tensor.reshape(-1, 128).contiguous() for tensor in (x, gate))
        codes, scale = kernel(
            rows,
            weight,
            None,
            gates,
            norm.eps,
            norm_before_gate=True,
            activation=norm.activation,
            out_dtype=quant.dtype,
            group_size=128,
        )
        return codes.view(x.shape[0], -1), reference.lay_out_scales(scale.view(x.shape[0], -1), quant)

    return aiter


def _fla(case: Case) -> Call:
    # Signature: flash-linear-attention fla/modules/fused_norm_gate.py.
    norm, quant = _gated_norm(case), case.quant
    norm_gated = _imported("fla.modules.fused_norm_gate", "rms_norm_gated")
    if not norm.norm_before_gate:
        raise Unavailable("gates behind the norm only")
    activation = {"silu": "swish", "sigmoid": "sigmoid"}[norm.activation]

    def fla(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> Outputs:
        gates = gate.reshape(x.shape)
        normed = norm_gated(x, gates, weight, None, activation=activation, eps=norm.eps)
        return op.group_quant(normed.flatten(1), quant)

    return fla


def _reciprocal(case: Case) -> Call:
    producer, quant = case.producer, replace(case.quant, division="reciprocal")

    def reciprocal(*tensors: torch.Tensor) -> Outputs:
        return producer.fused(tensors, quant)

    return reciprocal


def _light(case: Case) -> Call:
    return light_call(case)


def light_call(case: Case, config: object = None, *, dependent: bool = False) -> Call:
    """The light as a call; `config` is a `kernels.config.LaunchConfig`, None for our kernel's heuristic."""
    try:
        from fusionlab.observe.bench.light import launch_light
    except ImportError as error:
        raise Unavailable(f"Triton cannot be imported ({error})") from error
    producer, quant = case.producer, case.quant
    config = config or producer.choose_launch(case.units, case.unit)

    def light(*tensors: torch.Tensor) -> Outputs:
        outputs = producer.empty_outputs(tensors, quant)
        rows, vector = tensors[: producer.rows], (*tensors[producer.rows :], None)[0]
        run, pieces = producer.run(quant), producer.pieces
        launch_light(rows, vector, run, quant, outputs, config, pieces=pieces, dependent=dependent)
        return outputs

    return light


def fused_call(case: Case, config: object) -> Call:
    """Our kernel as a call with the launch configuration `config` (a `kernels.config.LaunchConfig`)."""
    producer, quant = case.producer, case.quant

    def fused(*tensors: torch.Tensor) -> Outputs:
        outputs = producer.empty_outputs(tensors, quant)
        producer.launch(tensors, quant, outputs, config)
        return outputs

    return fused


def _imported(module: str, name: str) -> Callable:
    """A function of an optional package; any exception from its import means that it is unavailable."""
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a package built for another GPU can raise anything
        raise Unavailable(f"{module}.{name} cannot be imported: {in_a_line(error, 120)}") from error


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("eager", "eager", _eager),
        Variant("two_kernel", "two kernels: producer compiled, quantisation opaque", _two_kernel, compiled=True),
        Variant("inductor", "Inductor alone", _inductor, exact=False, compiled=True),
        Variant("aiter", "AITER's Triton kernel", _aiter, exact=False, package="amd-aiter"),
        Variant("fla", "FLA's gated norm + quant", _fla, exact=False, package="flash-linear-attention"),
        Variant("fused", "ours", _fused),
        Variant("light", "the light", _light, exact=False, computes=False),
        Variant("reciprocal", "ours, by the reciprocal", _reciprocal, exact=False),
    )
}


def package_versions(names: tuple[str, ...] = tuple(VARIANTS)) -> dict[str, str]:
    """Versions of the installed optional packages that `names` need, by distribution."""
    found = {}
    for name in names:
        package = VARIANTS[name].package
        for distribution in (package, package.removeprefix("amd-")) if package else ():
            try:
                found[distribution] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
