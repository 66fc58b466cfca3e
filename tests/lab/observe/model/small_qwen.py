"""A small model for these tests, made once, and ways to run it that compile nothing to machine code."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("transformers.models.qwen3_next")

from fusionlab.observe.model.whole_model import make_config, make_model
from fusionlib.explanation import boxed, inductor_until, to_the_pass

CONTEXT = 8


@functools.cache
def small():
    """Four layers, hidden 256. It is shared: a test leaves its weights as they were."""
    return make_model(make_config(small=True), 4, "cpu", 0)


@functools.cache
def pair():
    """A layer of each kind alone."""
    config = make_config(2, small=True)
    config.layer_types = ["linear_attention", "full_attention"]
    return make_model(config, 2, "cpu", 0)


def embedded(model):
    """In the place of `workload.forward`: a model that only looks words up, for tests of what is done with results."""

    def run(ids, positions, cache):
        return model.model.model.embed_tokens(ids)

    return run


def uncompiled(function, fusion):
    """In the place of `step_variants.compiled`: the function as it is."""
    return function


def until_the_pass(function, fusion):
    """In the place of `step_variants.compiled`: the graph that the pass made of it, run call by call."""

    def inner_compile(module, example_inputs, **how):
        if fusion is not None:
            to_the_pass(module, example_inputs, fusion, is_inference=True)
            module.recompile()
        return boxed(module)

    torch._dynamo.reset()
    return torch.compile(function, backend=inductor_until(inner_compile), dynamic=False, fullgraph=True)
