"""Fusions, and all that the author of one imports: the base class, what reads a graph, and what defines an op.

    class SiluAndMulQuant(Fusion):
        name = "silu_and_mul"
        op = QuantOp("mine::silu_and_mul_quant", "Tensor gate, Tensor up", SiluAndMul, value=..., problem=...)

        def read(self, value, trail):
            ...  # a Reading, or raise NotMine or Stop

    fusion = fusionlib.FusionPass(fusions=(*fusionlib.fusions.BUILT_IN, SiluAndMulQuant()))

CONTRIBUTING.md goes through it in seven steps.
"""

from fusionlib.contract import places_problem, rows_problem, strides_problem
from fusionlib.fusions.act_and_mul import ActAndMulQuant, SigmoidGateQuant
from fusionlib.fusions.fusion import VALUE, Calls, Fusion
from fusionlib.fusions.gated_norm import GatedNormQuant
from fusionlib.fusions.producer_ops import OpaqueProducer, register_producer_kernel, register_producer_op
from fusionlib.fusions.rms_norm import RMSNormQuant
from fusionlib.match.activation import Activation, read_activation
from fusionlib.match.graph import (
    describe,
    dtype,
    is_add,
    is_call,
    is_div,
    is_mul,
    is_narrowing,
    is_vector_of,
    literal,
    numel,
    operands,
    peel_exact,
    same,
    shape,
    value,
    with_literal,
)
from fusionlib.match.reasons import NotMine, Reason, Stop
from fusionlib.match.result import Reading, Trail
from fusionlib.match.root import Root, find_root, read_root, repeats_along
from fusionlib.match.sizes import equal, same_shape
from fusionlib.quant_op import QuantOp
from fusionlib.spec import GroupQuant

#: What `FusionPass` looks for by default.
BUILT_IN: tuple[Fusion, ...] = (GatedNormQuant(), RMSNormQuant(), ActAndMulQuant(), SigmoidGateQuant())

__all__ = [
    "BUILT_IN",
    "VALUE",
    "ActAndMulQuant",
    "Activation",
    "Calls",
    "Fusion",
    "GatedNormQuant",
    "GroupQuant",
    "NotMine",
    "OpaqueProducer",
    "QuantOp",
    "RMSNormQuant",
    "Reading",
    "Reason",
    "Root",
    "SigmoidGateQuant",
    "Stop",
    "Trail",
    "describe",
    "dtype",
    "equal",
    "find_root",
    "is_add",
    "is_call",
    "is_div",
    "is_mul",
    "is_narrowing",
    "is_vector_of",
    "literal",
    "numel",
    "operands",
    "peel_exact",
    "places_problem",
    "read_activation",
    "read_root",
    "register_producer_kernel",
    "register_producer_op",
    "repeats_along",
    "rows_problem",
    "same",
    "same_shape",
    "shape",
    "strides_problem",
    "value",
    "with_literal",
]
