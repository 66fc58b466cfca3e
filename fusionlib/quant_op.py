"""An op that computes a value and quantises it: schema, fake, implementations and gradient from one declaration.

The op is functional and carries its specs as scalars. On CPU it *is* the reference. On a GPU it launches the fusion's
kernel if there is one and nothing prevents it, and otherwise runs the reference there and warns once with the reason.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch

from fusionlib import gradient, reference, schema
from fusionlib.contract import device_problem
from fusionlib.spec import GroupQuant

#: Strided inputs are the point: Inductor must pass them unchanged.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

#: The name of the value that is quantised, among those that an op can return.
VALUE = "value"

_warned: set[str] = set()


class QuantOp:
    """`torch.ops.<name>(*tensors, *scalars) -> (codes, scale)`, and one op for every set of values it can also return.

    Such an op is called `<name>_with_value`, or `<name>_with_value_and_sum`, and returns them after codes and scale.

    Args:
        name: "namespace::op"; defining it again is an error, except when the same module is imported again.
        tensors: the op's tensors as a schema declares them: "Tensor x, Tensor gate, Tensor? bias". The first one is
            [tokens, ...], with as many elements as the value.
        spec: the type of the frozen dataclass that says what is computed, with a method `output_dtype(dtype)`: the
            dtype of the value for a first tensor of `dtype`.
        value: (*tensors, spec) -> the value, [tokens, hidden], contiguous: what is computed, in plain PyTorch. With
            `kept` it returns a tuple: the value, then those of `kept`, each like the value but for its dtype.
        problem: (*tensors, spec, quant) -> None, or why these tensors do not fit these specs on any device.
        kernel_problem: the same for the kernel alone: what its tiling or addressing cannot do.
        launch: (*tensors, spec, quant, codes, scale, *values) runs the kernel into its last arguments; a value that is
            not asked for is None. No `launch` if there is no kernel: a GPU then runs the reference, which is right but
            not fused.
        kept: what the op can return besides codes, scale and the value, by name: (*tensors, spec) -> its dtype.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        spec: type,
        *,
        value: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
        problem: Callable[..., str | None],
        kernel_problem: Callable[..., str | None] | None = None,
        launch: Callable[..., None] | None = None,
        kept: Mapping[str, Callable[..., torch.dtype]] | None = None,
    ) -> None:
        self.name, self.spec = name, spec
        self._value, self._problem, self._kernel_problem, self._launch = value, problem, kernel_problem, launch
        self._kept = {VALUE: _value_dtype, **(kept or {})}
        self._count = len(tensors.split(","))
        self.specs = functools.lru_cache(maxsize=256)(self._specs)
        arguments = f"{tensors}, {schema.declared(spec, GroupQuant)}"
        namespace, own = name.split("::")
        subsets = [each for n in range(len(self._kept) + 1) for each in itertools.combinations(self._kept, n)]
        if not hasattr(getattr(torch.ops, namespace), own):
            for names in subsets:
                self._define(name + _suffix(names), arguments, names)
        ops = getattr(torch.ops, namespace)
        self._ops = {frozenset(names): getattr(ops, own + _suffix(names)).default for names in subsets}

    @property
    def plain(self) -> torch._ops.OpOverload:
        """The op that returns codes and scale alone."""
        return self._ops[frozenset()]

    @property
    def overloads(self) -> tuple[torch._ops.OpOverload, ...]:
        """Every op, by how many values it returns."""
        return tuple(self._ops.values())

    def returning(self, names: Iterable[str]) -> tuple[torch._ops.OpOverload, tuple[str, ...]]:
        """The op that also returns the values of `names`, and what its results are, in order."""
        wanted = frozenset(names)
        return self._ops[wanted], ("codes", "scale", *(name for name in self._kept if name in wanted))

    def __call__(self, *arguments: Any, also: Iterable[str] = ()) -> tuple[torch.Tensor, ...]:
        """(*tensors, spec, quant) -> codes, scale and the values of `also`, in the order of the declaration."""
        *tensors, spec, quant = arguments
        return self.returning(also)[0](*tensors, *schema.scalars(spec, quant))

    def __fingerprint__(self) -> tuple[Any, ...]:
        """What a compiled graph depends on: not how the op computes, since a graph only calls it by name."""
        return self.name, self.spec, tuple(self._kept), self._problem, self._kernel_problem, self._launch is None

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

    def _define(self, name: str, arguments: str, kept: tuple[str, ...]) -> None:
        returned = ", ".join(f"Tensor {each}" for each in ("codes", "scale", *kept))
        reference = functools.partial(self._reference, kept)
        torch.library.define(name, f"({arguments}) -> ({returned})", tags=TAGS)
        torch.library.impl(name, "cpu", reference)
        torch.library.impl(name, "cuda", functools.partial(self._on_gpu, kept))
        torch.library.register_fake(name, functools.partial(self._fake, kept))
        gradient.register(name, reference)

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

    def _reference(self, kept: tuple[str, ...], *arguments: Any) -> tuple[torch.Tensor, ...]:
        *tensors, spec, quant = self._checked(arguments)
        found = self._value(*tensors, spec)
        values = dict(zip(self._kept, found if isinstance(found, tuple) else (found,), strict=True))
        return *reference.group_quant(values[VALUE], quant), *(values[name] for name in kept)

    def _fake(self, kept: tuple[str, ...], *arguments: Any) -> tuple[torch.Tensor, ...]:
        checked = self._checked(arguments)
        codes, scale = empty_quantised(checked[0], checked[-1])
        return codes, scale, *self._empty(codes, kept, checked[:-1]).values()

    def _empty(self, codes: torch.Tensor, kept: tuple[str, ...], declared: tuple[Any, ...]) -> dict[str, torch.Tensor]:
        """Unwritten values for (*tensors, spec), by name."""
        return {name: torch.empty_like(codes, dtype=self._kept[name](*declared)) for name in kept}

    def _on_gpu(self, kept: tuple[str, ...], *arguments: Any) -> tuple[torch.Tensor, ...]:
        checked = self._checked(arguments)
        reason = self.device_problem(*checked)
        if reason is not None:
            warn_once(reason)
            return self._reference(kept, *arguments)
        codes, scale = room_for_quantised(checked[0], checked[-1])
        values = self._empty(codes, kept, checked[:-1])
        assert self._launch is not None  # otherwise device_problem gave a reason
        with torch.cuda.device(codes.device):
            self._launch(*checked, codes, scale, *(values.get(name) for name in self._kept))
        return codes, scale, *values.values()


def _suffix(names: tuple[str, ...]) -> str:
    return f"_with_{'_and_'.join(names)}" if names else ""


def _value_dtype(first: torch.Tensor, *others: Any) -> torch.dtype:
    return others[-1].output_dtype(first.dtype)


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


def room_for_quantised(y: torch.Tensor, quant: GroupQuant) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on a device, in storage for a multiple of 4 tokens.

    A product that takes rows by fours, as cuBLAS does with scales per group, then reads the rows that are missing from
    there (`block_mm.rows_of_four`), and nobody copies the codes of one token into a tensor of four.
    """
    tokens, rows = y.shape[0], reference.by_fours(y.shape[0])
    if rows == tokens:
        return empty_quantised(y, quant)
    hidden = prod(y.shape[1:])
    size, stride, dtype = reference.scale_storage(tokens, hidden // quant.group_size, quant)
    stored = (rows, *size[1:]) if quant.scale_layout == "column_major_padded" else size
    codes = y.new_empty((rows, hidden), dtype=quant.dtype).resize_(tokens, hidden)
    return codes, torch.empty_strided(stored, stride, dtype=dtype, device=y.device).as_strided_(size, stride)
