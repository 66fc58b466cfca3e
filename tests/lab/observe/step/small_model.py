"""A small model for the step's tests, and blocks that are run as they are written instead of compiled."""

from __future__ import annotations

import functools

from fusionlab.observe.step.decode_sizes import SMALL
from fusionlab.observe.step.decoder import make_decoder, make_weights
from fusionlab.observe.step.step_variants import CompiledBlock


@functools.cache
def weights():
    return make_weights(SMALL, 4, "cpu", 0)


def decoder(tokens=3):
    return make_decoder(weights(), tokens, "cpu", 1)


def quick(variant, kind):
    """A block that computes next to nothing, for tests of what is done with its results."""
    return CompiledBlock(variant, kind, lambda block, delta, residual, *state: (0.5 * delta, residual + delta), None)


def uncompiled(variant, kind):
    return CompiledBlock(variant, kind, lambda block, *tensors: block(*tensors), None)
