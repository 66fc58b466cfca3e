"""An op that computes a value and quantises it: schema, fake, implementations and gradient from one declaration.

The op is functional and carries its specs as scalars. On CPU it *is* the reference. On a GPU it launches the fusion's
kernel if there is one and nothing prevents it, and otherwise runs the reference there and warns once with the reason.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from math import prod
from typing import Any

import torch

from fusionlib import gradient, reference, schema
from fusionlib.contract import device_problem
from fusionlib.spec import GroupQuant

#: Strided inputs are the point: Inductor must pass them unchanged.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_warned: set[str] = set()


class QuantOp:
    """`torch.ops.<name>(*tensors, *scalars) -> (codes, scale)`, and `<name><suffix>`, which also returns the value.

    Args:
        name: "namespace::op"; defining it again is an error, except when the same module is imported again.
        tensors: the op's tensors as a schema declares them: "Tensor x, Tensor gate, Tensor? bias". The first one is
            [tokens, ...], with as many elements as the value.
        spec: the type of the frozen dataclass that says what is computed, with a method `output_dtype(dtype)`: the
            dtype of the value for a first tensor of `dtype`.
        value: (*tensors, spec) -> the value, [tokens, hidden], contiguous: what is computed, in plain PyTorch.
        problem: (*tensors, spec, quant) -> None, or why these tensors do not fit these specs on any device.
        kernel_problem: the same for the kernel alone: what its tiling or addressing cannot do.
        launch: (*tensors, spec, quant, codes, scale, value or None) runs the kernel into its last three arguments.
            None if there is no kernel: a GPU then runs the reference, which is right but not fused.
        suffix: for the name of the op that also returns the value.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        spec: type,
        *,
        value: Callable[..., torch.Tensor],
        problem: Callable[..., str | None],
        kernel_problem: Callable[..., str | None] | None = None,
        launch: Callable[..., None] | None = None,
        suffix: str = "_with_value",
    ) -> None:
        self.name, self.spec = name, spec
        self._value, self._problem, self._kernel_problem, self._launch = value, problem, kernel_problem, launch
        self._count = len(tensors.split(","))
        self.specs = functools.lru_cache(maxsize=256)(self._specs)
        scalars = schema.declared(spec, GroupQuant)
        namespace, own = name.split("::")
        if not hasattr(getattr(torch.ops, namespace), own):
            self._define(name, f"{tensors}, {scalars}", keeps_value=False)
            self._define(name + suffix, f"{tensors}, {scalars}", keeps_value=True)
        self.plain = getattr(getattr(torch.ops, namespace), own).default
        self.with_value = getattr(getattr(torch.ops, namespace), own + suffix).default

    def __call__(self, *arguments: Any, return_value: bool = False) -> tuple[torch.Tensor, ...]:
        """(*tensors, spec, quant) -> codes, scale and, if asked for, the value."""
        *tensors, spec, quant = arguments
        op = self.with_value if return_value else self.plain
        return op(*tensors, *schema.scalars(spec, quant))

    def __fingerprint__(self) -> tuple[Any, ...]:
        """What a compiled graph depends on: not how the op computes, since a graph only calls it by name."""
        return self.name, self.spec, self._problem, self._kernel_problem, self._launch is None

    def device_problem(self, *arguments: Any) -> str | None:
        """Why a GPU cannot run the kernel on (*tensors, spec, quant), which fit each other; None if it can."""
        first, quant = arguments[0], arguments[-1]
        if self._launch is None:
            return f"{self.name} has no kernel"
        problem = self._kernel_problem(*arguments) if self._kernel_problem is not None else None
        return problem or device_problem(first.device, quant.dtype)

    def unsupported(self, *arguments: Any) -> str | None:
        """Why the op cannot run (*tensors, spec, quant) on their device, or None. On CPU only the specs decide."""
        problem = self._problem(*arguments)
        if problem is not None or arguments[0].device.type == "cpu":
            return problem
        return self.device_problem(*arguments)

    def _define(self, name: str, arguments: str, *, keeps_value: bool) -> None:
        returned = "(Tensor codes, Tensor scale" + ", Tensor value" * keeps_value + ")"
        torch.library.define(name, f"({arguments}) -> {returned}", tags=TAGS)
        last = 3 if keeps_value else 2
        torch.library.impl(name, "cpu", lambda *arguments: self._reference(*arguments)[:last])
        torch.library.impl(name, "cuda", lambda *arguments: self._on_gpu(keeps_value, *arguments)[:last])
        torch.library.register_fake(name, lambda *arguments: self._fake(*arguments)[:last])
        gradient.register(name, lambda *arguments: self._reference(*arguments)[:last])

    def _specs(self, *scalars: object) -> tuple[Any, ...]:
        """The specs of a call; cached, since a model uses few and a launch takes microseconds."""
        return schema.split((self.spec, GroupQuant), scalars)

    def _checked(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """(*tensors, spec, quant) of a call. Raises ValueError if they do not fit."""
        checked = *arguments[: self._count], *self.specs(*arguments[self._count :])
        problem = self._problem(*checked)
        if problem is not None:
            raise ValueError(f"fusionlib: {problem}")
        return checked

    def _reference(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        *tensors, spec, quant = self._checked(arguments)
        value = self._value(*tensors, spec)
        return *reference.group_quant(value, quant), value

    def _fake(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        first, *_, spec, quant = self._checked(arguments)
        codes, scale = empty_quantised(first, quant)
        return codes, scale, torch.empty_like(codes, dtype=spec.output_dtype(first.dtype))

    def _on_gpu(self, keeps_value: bool, *arguments: Any) -> tuple[torch.Tensor | None, ...]:
        checked = self._checked(arguments)
        reason = self.device_problem(*checked)
        if reason is not None:
            warn_once(reason)
            return self._reference(*arguments)
        first, *_, spec, quant = checked
        codes, scale = empty_quantised(first, quant)
        value = torch.empty_like(codes, dtype=spec.output_dtype(first.dtype)) if keeps_value else None
        assert self._launch is not None  # otherwise device_problem gave a reason
        with torch.cuda.device(first.device):
            self._launch(*checked, codes, scale, value)
        return codes, scale, value


def warn_once(reason: str) -> None:
    """Warn that a GPU runs the unfused reference, once for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"fusionlib runs the unfused reference: {reason}", RuntimeWarning, stacklevel=4)


def empty_quantised(y: torch.Tensor, quant: GroupQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """Unwritten codes and scales for the rows of `y` [tokens, ...], in their exact shapes and strides."""
    tokens, hidden = y.shape[0], prod(y.shape[1:])
    size, stride, dtype = reference.scale_storage(tokens, hidden // quant.group_size, quant)
    codes = y.new_empty((tokens, hidden), dtype=quant.dtype)
    return codes, torch.empty_strided(size, stride, dtype=dtype, device=y.device)
