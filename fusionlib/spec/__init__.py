"""The vocabulary: what is computed, as frozen dataclasses.

A producer (`GatedNorm`, `RMSNorm`, `ActAndMul`) says how a value is computed and where it is rounded; `GroupQuant` says
how a row is cut into groups and turned into FP8 codes and scales. The reference, the ops, the kernels and the matcher
all use these classes; nothing here knows about graphs, devices or launches.
"""

from fusionlib.spec.checks import LEAST_EPS, MOST_ELEMENTS, OUTPUT_DTYPES, SpecError
from fusionlib.spec.producers import ActAndMul, Activation, GatedNorm, RMSNorm
from fusionlib.spec.quantisation import (
    FP8_MAXIMA,
    GREATEST_FLOOR,
    LEAST_FLOOR,
    Division,
    FloorOn,
    GroupQuant,
    NanScale,
    ScaleFormat,
    ScaleLayout,
)

__all__ = [
    "FP8_MAXIMA",
    "GREATEST_FLOOR",
    "LEAST_EPS",
    "LEAST_FLOOR",
    "MOST_ELEMENTS",
    "OUTPUT_DTYPES",
    "ActAndMul",
    "Activation",
    "Division",
    "FloorOn",
    "GatedNorm",
    "GroupQuant",
    "NanScale",
    "RMSNorm",
    "ScaleFormat",
    "ScaleLayout",
    "SpecError",
]
