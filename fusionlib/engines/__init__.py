"""Readers of the quantisations and norms that inference engines really call, by name: no engine is ever imported.

One module per engine. Each reader says the schemas that its op is known by and what it was read from; an op of the same
name with another schema is another version, and refused. None of the engines was run with fusionlib: the tests hold the
readers to stand-ins with these schemas, written in PyTorch after the sources.

What the fused op computes differs from the engines' CUDA kernels in two things that their sources show. NaN: their
maxima skip one, and their clamps make a number of it, where the fused op keeps it. Divisions: a Triton kernel's, and
those of a CUDA kernel that is compiled with fast math, are not correctly rounded, where the fused op's are.
"""

from collections.abc import Callable

from fusionlib.engines import deepseek, fbgemm, fla, sglang, tensorrt_llm, vllm
from fusionlib.engines.shipped import Shipped
from fusionlib.fusions import register_producer_kernel, register_producer_op
from fusionlib.match import register_quant_kernel, register_quant_op

_MODULES = (vllm, sglang, tensorrt_llm, fbgemm, deepseek, fla)

#: Every shipped reader by the name of its op or Triton kernel.
SHIPPED: dict[str, Shipped] = {each.name: each for module in _MODULES for each in module.READERS}


def register_engines() -> None:
    """Register all of them; the names of missing ops never occur in a graph."""
    how: dict[str, Callable[..., None]] = {
        "quant op": register_quant_op,
        "quant kernel": register_quant_kernel,
        "norm op": register_producer_op,
        "norm kernel": register_producer_kernel,
    }
    for each in SHIPPED.values():
        how[each.kind](each.name, each, **({} if each.spec is None else {"spec": each.spec}))


register_engines()

__all__ = ["SHIPPED", "Shipped", "register_engines"]
