"""vLLM's documented door, simulated: no vLLM is installed here, and none was run with fusionlib.

What is simulated, after vllm/config/compilation.py, vllm/compilation/backends.py and vllm/compilation/passes of
vllm-project/vllm (00bb7e3ca): a pass in `inductor_compile_config["post_grad_custom_post_pass"]` must be an
InductorPass; the manager that takes that option's place runs it behind vLLM's own passes, on a graph that version 1 of
auto_functionalized keeps functional, before the ops of vLLM's IR are lowered; its key holds the passes' keys as JSON.
"""

import json
from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

import fusionlib
from fusionlib.explanation import apart_from_caches
from fusionlib.match import register_quant_op
from fusionlib.match.opaque import readers_kept
from tests.engines.standins import FP8, defined, rows_of
from tests.support import same

HIDDEN = 256


class InductorPass(CustomGraphPass):
    """The base class that vLLM demands."""

    def __call__(self, graph: fx.Graph) -> None:
        raise NotImplementedError

    def uuid(self) -> object:
        raise NotImplementedError


class CallableInductorPass(InductorPass):
    """A callable with a key; without one vLLM would hash the source of its class, which says nothing of its options."""

    def __init__(self, call: Callable[[fx.Graph], None], uuid: object = None) -> None:
        self._call, self._uuid = call, uuid

    def __call__(self, graph: fx.Graph) -> None:
        self._call(graph)

    def uuid(self) -> object:
        return self._uuid


class PassManager(CustomGraphPass):
    """Runs the passes; vLLM's own, which are left out here, come first, and lower its IR last."""

    def __init__(self) -> None:
        self.passes: list[InductorPass] = []
        self.seen: list[list[str]] = []  # the calls of each graph before and after the user's pass

    def add(self, user: InductorPass) -> None:
        assert isinstance(user, InductorPass)
        self.passes.append(user)

    def __call__(self, graph: fx.Graph) -> None:
        self.seen.append(calls(graph))
        for each in self.passes:
            each(graph)
        self.seen.append(calls(graph))

    def uuid(self) -> str:
        return json.dumps([each.uuid() for each in self.passes])


def calls(graph: fx.Graph) -> list[str]:
    wrapped = torch.ops.higher_order.auto_functionalized
    return [
        f"functionalised {node.args[0]}" if node.target is wrapped else str(node.target)
        for node in graph.nodes
        if node.op == "call_function"
    ]


def compile_as_vllm(model, inductor_compile_config):
    """What vLLM's backend does with the option, in so far as a pass sees it."""
    manager, config = PassManager(), dict(inductor_compile_config)
    manager.add(config.pop("post_grad_custom_post_pass"))
    options = {"post_grad_custom_post_pass": manager, "enable_auto_functionalized_v2": False, **config}
    return torch.compile(model, options=options), manager


def block_fp8_linear(x, weight):
    """As vLLM's block-FP8 linear on Hopper: codes and column-major scales into buffers, then the product."""
    codes, scale = torch.empty_like(x, dtype=FP8), rows_of(x.shape[0], HIDDEN // 128, "column_major")
    torch.ops._C.per_token_group_fp8_quant(x, codes, scale, 128, 1e-10, -448.0, 448.0, False, False, False)
    value = codes.float().unflatten(-1, (-1, 128)) * scale.unsqueeze(-1)
    return (value.flatten(-2) @ weight).to(x.dtype), codes, scale


def layer(x, gate, weight, linear):
    """An input norm of vLLM's IR before a linear layer, then the gated norm, in plain PyTorch, before another."""
    hidden, *first = block_fp8_linear(torch.ops.vllm_ir.rms_norm(x, weight, 1e-6), linear)
    heads, z = (t.unflatten(-1, (-1, 128)).float() for t in (hidden, gate))
    normed = heads * torch.rsqrt(heads.pow(2).mean(-1, keepdim=True) + 1e-6) * torch.nn.functional.silu(z)
    out, *second = block_fp8_linear(normed.to(x.dtype).flatten(-2), linear)
    return out, *first, *second


@pytest.fixture
def ops():
    with defined("vllm_ir::rms_norm"), defined("_C::per_token_group_fp8_quant"):
        yield


def test_the_pass_in_a_vllm_model_by_its_documented_door(ops):
    tensors = torch.randn(6, HIDDEN).bfloat16(), torch.randn(6, HIDDEN).bfloat16(), torch.rand(HIDDEN).bfloat16()
    linear = torch.randn(HIDDEN, HIDDEN) / 16
    fusion = fusionlib.FusionPass("cpu", expect={"rms_norm": 1, "gated_norm": 1})

    door = {"post_grad_custom_post_pass": CallableInductorPass(fusion, fusion.uuid()), "emulate_precision_casts": True}
    compiled, manager = compile_as_vllm(layer, door)
    with torch.no_grad(), apart_from_caches():  # a warm cache would run no pass
        got, want = compiled(*tensors, linear), layer(*tensors, linear)
    fusion.check()
    assert fusion.report().fused_by == {"rms_norm": 1, "gated_norm": 1} and not fusion.report().refused
    before, after = manager.seen
    assert sum("functionalised _C.per_token_group_fp8_quant" in call for call in before) == 2
    assert not any("_C." in call or "vllm_ir." in call for call in after)
    assert sum("fusionlib." in call for call in after) == 2
    assert all(map(same, got[1:3], want[1:3]))  # the second linear reads a product that Inductor sums in another order
    assert torch.allclose(got[0].float(), want[0].float(), rtol=0.05, atol=0.05)


def test_the_key_given_at_the_door_is_the_passes_own(ops):
    fusion = fusionlib.FusionPass("cpu")
    _, manager = compile_as_vllm(layer, {"post_grad_custom_post_pass": CallableInductorPass(fusion, fusion.uuid())})
    assert json.loads(manager.uuid()) == [fusion.uuid()]
    with readers_kept():
        register_quant_op("mine::quant", lambda a: None)
        assert json.loads(manager.uuid()) != [fusion.uuid()]  # register first, then open the door
