"""What fields of a spec may hold; an error names the field, its value, the limit and the way out."""

from __future__ import annotations

from collections.abc import Iterable

import torch

#: The least eps other than 0: the smallest normal float32 number.
LEAST_EPS = torch.finfo(torch.float32).tiny

#: The most elements of a norm or group: a token's row is addressed with 32 bits.
MOST_ELEMENTS = 2**31 - 1

#: What a value can be rounded to.
OUTPUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class SpecError(ValueError):
    """An invalid spec: the message names the field, its value, the limit and the way out."""


def _shown(value: object) -> str:
    """A value as an error message quotes it, whatever the object and its size."""
    try:
        text = repr(value)
    except Exception:  # an int with more digits than Python prints, an object whose repr fails
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def one_of(field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Check that `value` is one of `allowed`."""
    # The type must match too: 1.0 and True equal 1, but an op's schema accepts neither as an integer.
    if not any(type(value) is type(each) and value == each for each in allowed):
        listed = ", ".join(repr(each) for each in allowed)
        raise SpecError(f"{field}={_shown(value)} is unknown; choose one of {listed}")


def elements(field: str, value: object) -> None:
    """Check a number of elements."""
    if type(value) is not int or not 1 <= value <= MOST_ELEMENTS:
        raise SpecError(
            f"{field}={_shown(value)} must be a positive integer of at most 2^31 - 1 (a number of elements); "
            f"give a Python int, such as {field}=128"
        )


def flag(field: str, value: object) -> None:
    """Check a yes or no."""
    if type(value) is not bool:
        raise SpecError(f"{field}={_shown(value)} must be True or False")


def number(field: str, value: object, needed: str) -> float:
    """`value` as a float. What is infinite in float32 is not finite, since all arithmetic is float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SpecError(f"{field}={_shown(value)} must be a Python number, {needed}; convert it with float(...)")
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise SpecError(f"{field}={_shown(value)} is not finite in float32 (up to 3.4e38); it must be {needed}")
    return float(value) + 0.0  # + 0.0 turns -0.0 into 0.0


def epsilon(value: object) -> float:
    """`value` as the number that is added to a mean of squares."""
    eps = number("eps", value, "0 or more; models use 1e-5 or 1e-6")
    if eps < 0 or (eps > 0 and eps < LEAST_EPS):
        raise SpecError(f"eps={eps!r} must be 0, or a normal float32 number >= {LEAST_EPS:g}; models use 1e-6")
    return eps


def rounding_points(value: object, points: tuple[str, ...]) -> frozenset[str]:
    """`value` as a set of `points`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise SpecError(f"rounding={_shown(value)} must be a set of rounding points, such as {{'output'}}")
    given = tuple(value)
    for point in given:
        one_of("rounding", point, points)
    return frozenset(given)


def output_dtype(value: object, rounding: frozenset[str]) -> None:
    """Check what the point `output` rounds to, if that is given."""
    one_of("out_dtype", value, (None, *OUTPUT_DTYPES))
    if value is not None and "output" not in rounding:
        raise SpecError(f"out_dtype={value} needs the rounding point 'output': without it the result is float32")
