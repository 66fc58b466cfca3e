"""A spec and the scalars of an op say the same, whichever spec, in every process."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from dataclasses import dataclass, fields, make_dataclass, replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, schema
from fusionlib.op import ACT_AND_MUL, GATED_NORM, RMS_NORM
from fusionlib.rewrite.cache_key import PACKAGE
from tests.support import acts, norms, quants, rms_norms

NORM_SCALARS = (
    "int norm_size, float eps, str activation, bool norm_before_gate, int weight_offset, str rounding, "
    "ScalarType? out_dtype"
)
QUANT_SCALARS = (
    "int group_size, ScalarType dtype, float? floor, str floor_on, str division, str scale_format, str scale_layout, "
    "bool round_scale, float? fp8_max, str scale_division, str nan_scale"
)


def test_the_scalars_of_the_two_words_are_these():
    """Compiled artefacts carry them: another order or another name is another op."""
    assert schema.declared(GatedNorm) == NORM_SCALARS and schema.declared(GroupQuant) == QUANT_SCALARS
    assert schema.declared(GatedNorm, GroupQuant) == f"{NORM_SCALARS}, {QUANT_SCALARS}"


def test_the_scalars_of_the_other_words_are_these():
    assert schema.declared(RMSNorm) == (
        "int norm_size, float eps, int weight_offset, str rounding, ScalarType? out_dtype"
    )
    assert schema.declared(ActAndMul) == "str activation, str rounding, ScalarType? out_dtype"


def test_the_other_ops_have_the_schemas_that_follow():
    """One op for every set of values that can be returned; compiled artefacts carry their names."""
    names = {str(op).removeprefix("fusionlib.") for op in RMS_NORM.overloads}
    suffixes = ("", "_with_value", "_with_sum", "_with_value_and_sum")
    assert names == {f"rms_norm_group_quant{suffix}.default" for suffix in suffixes}
    assert len(ACT_AND_MUL.overloads) == 2
    for op, tensors, spec in (
        (RMS_NORM, ["x", "residual", "weight", "token_factor"], RMSNorm),
        (ACT_AND_MUL, ["x", "gate"], ActAndMul),
    ):
        scalars = [f.name for f in (*fields(spec), *fields(GroupQuant))]
        for overload in op.overloads:
            assert [a.name for a in overload._schema.arguments] == [*tensors, *scalars]
        for kept in ((), ("value",)):
            target, results = op.returning(kept)
            assert [r.name for r in target._schema.returns] == list(results) == ["codes", "scale", *kept]
    target, results = RMS_NORM.returning({"sum", "value"})
    assert list(results) == ["codes", "scale", "value", "sum"] == [r.name for r in target._schema.returns]


@given(spec=st.one_of(st.integers(1, 2**31 - 1).flatmap(rms_norms), acts()), quant=quants(8))
def test_another_spec_comes_back_from_its_scalars(spec, quant):
    both = schema.scalars(spec, quant)
    assert schema.split((type(spec), GroupQuant), both) == (spec, quant)
    back = schema.from_scalars(type(spec), schema.scalars(spec))
    assert back == spec and repr(back) == repr(spec)


def test_the_ops_have_the_schemas_that_follow():
    fused, quant = GATED_NORM.plain._schema, torch.ops.fusionlib.group_quant.default._schema
    names = [f.name for f in (*fields(GatedNorm), *fields(GroupQuant))]
    assert [a.name for a in fused.arguments] == ["x", "gate", "weight", "bias", *names]
    assert [a.name for a in quant.arguments] == ["y", *[f.name for f in fields(GroupQuant)]]
    for each, declared in ((fused, f"{NORM_SCALARS}, {QUANT_SCALARS}"), (quant, QUANT_SCALARS)):
        assert declared in str(each)


@given(norm=st.integers(1, 2**31 - 1).flatmap(norms), quant=st.integers(1, 2**31 - 1).flatmap(quants))
def test_a_spec_comes_back_from_its_scalars(norm, quant):
    both = schema.scalars(norm, quant)
    count = len(fields(GatedNorm))
    assert schema.scalars(norm) + schema.scalars(quant) == both
    for spec, values in ((norm, both[:count]), (quant, both[count:])):
        back = schema.from_scalars(type(spec), values)
        assert back == spec and repr(back) == repr(spec) and schema.scalars(back) == values
    assert schema.split((GatedNorm, GroupQuant), both) == (norm, quant)


@given(norm=norms(8), quant=quants(4))
def test_an_op_takes_the_scalars_and_reads_back_the_specs(norm, quant):
    """Through PyTorch's own types: what a schema would not take, or would take for another number, shows here."""
    quant = replace(quant, floor=quant.floor_in(norm.output_dtype(torch.float32)))
    x = torch.ones(2, 8)
    codes, _, value = GATED_NORM.returning({"value"})[0](x, x, torch.ones(8), None, *schema.scalars(norm, quant))
    assert codes.dtype == quant.dtype and value.dtype == norm.output_dtype(x.dtype)
    assert GATED_NORM.specs(*schema.scalars(norm, quant)) == (norm, quant)


@given(st.frozensets(st.sampled_from(GatedNorm.POINTS)))
def test_a_set_of_words_is_in_the_order_of_its_literal(points):
    @dataclass(frozen=True)
    class Rounded:
        points: frozenset[Literal["activation", "gate", "norm", "weight", "output"]]

    assert schema.declared(Rounded) == "str points"
    (text,) = schema.scalars(Rounded(points))
    assert text == ",".join(point for point in GatedNorm.POINTS if point in points)
    assert schema.from_scalars(Rounded, (text,)) == Rounded(points)


def test_the_order_is_the_same_in_every_process():
    """A set's own order is another one for every seed of Python's hashes."""
    script = (
        "from fusionlib import GatedNorm, schema\n"
        "import fusionlib.op\n"
        "rounding = frozenset({'activation', 'norm', 'weight', 'output'})\n"
        "print(list(rounding))\n"
        "print(schema.scalars(GatedNorm(8, rounding=rounding)))\n"
    )
    told = []
    for seed in ("1", "2", "3"):
        env = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        told.append(done.stdout.splitlines())
    assert len({line for line, _ in told}) > 1, "the seeds differ in nothing"
    assert {line for _, line in told} == {"(8, 1e-06, 'silu', True, 0, 'activation,norm,weight,output', None)"}


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "kind",
    [
        list[int],
        tuple,
        dict,
        complex,
        torch.Tensor,
        Colour,
        object,
        float | int | None,
        None | list[int],
        frozenset,
        frozenset[str],
        frozenset[Literal[1, 2]],
        frozenset[Literal["a"]] | None,
        Literal["a", 1],
        Literal["a,b", "a"],
    ],
    ids=str,
)
def test_a_field_that_no_schema_can_carry_is_named(kind):
    spec = make_dataclass("Spec", [("fine", int), ("strange", kind)], frozen=True)
    with pytest.raises(TypeError, match=r"field 'strange' is .*which no schema can carry; use int, float, bool, str"):
        schema.declared(spec)


def test_every_type_that_is_offered_can_be_declared():
    @dataclass(frozen=True)
    class Everything:
        count: int
        number: float
        flag: bool
        text: str
        dtype: torch.dtype
        word: Literal["a", "b"]
        words: frozenset[Literal["b", "a"]]
        maybe: float | None = None
        maybe_word: Literal["a", "b"] | None = None

    declared = "int count, float number, bool flag, str text, ScalarType dtype, str word, str words"
    assert schema.declared(Everything) == f"{declared}, float? maybe, str? maybe_word"
    spec = Everything(1, 2.0, True, "x", torch.float16, "b", frozenset({"a", "b"}), None, "a")
    assert schema.scalars(spec) == (1, 2.0, True, "x", torch.float16, "b", "b,a", None, "a")
    assert schema.from_scalars(Everything, schema.scalars(spec)) == spec


def test_scalars_that_are_not_those_of_the_spec_are_turned_down():
    schema.declared(GroupQuant)
    for values in (schema.scalars(GroupQuant())[:-1], (*schema.scalars(GroupQuant()), 1)):
        with pytest.raises(ValueError):
            schema.from_scalars(GroupQuant, values)
