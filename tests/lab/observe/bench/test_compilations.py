"""Several compilations, each with its own choice; the fastest is kept."""

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from fusionlab.observe.bench import compilations, run
from fusionlab.observe.bench.cases import BASE, SHAPES, Case
from fusionlab.observe.bench.compilations import FastestCompilation
from fusionlab.observe.bench.results import Results
from fusionlab.observe.bench.run import Settings, check_all
from fusionlab.observe.bench.variants import VARIANTS
from tests.lab.observe.bench.fakes import FakeTimer

SETTINGS = Settings(rounds=6, seed=1, compilations=3, device="cpu")
CASE = Case(SHAPES[BASE], 2)


class Compiled:
    """A fake compiler: each call it makes returns its number, and remembers where it was first called."""

    def __init__(self):
        self.made = []

    def make(self, case):
        first = []

        def call(x, gate, weight):
            if not first:  # lazy compilation happens now
                first.append((cache_dir(), torch.is_grad_enabled()))
            return number

        number = len(self.made)
        self.made.append(first)
        return call


def test_the_fastest_of_several_is_kept_and_all_their_times():
    compiled, timer = Compiled(), FakeTimer({0: 5.0, 1: 2.0, 2: 3.0})
    call, medians = FastestCompilation(timer, SETTINGS)(CASE, compiled.make)
    assert call(None, None, None) == 1
    assert [round(us, 1) for us in medians] == [2.2, 3.3, 5.5]  # samples are at +0, +10 and +20 %
    assert len(compiled.made) == 3 and timer.released == 1


def test_each_is_compiled_with_caches_of_its_own_and_without_gradients():
    compiled, outside = Compiled(), cache_dir()
    FastestCompilation(FakeTimer(), SETTINGS)(CASE, compiled.make)
    folders = [folder for ((folder, _),) in compiled.made]
    assert len({*folders, outside}) == 4
    assert not any(grad for ((_, grad),) in compiled.made)


def test_in_a_chain_it_is_timed_alone_with_the_scales_of_the_chain(monkeypatch):
    compiled, made, buffers = Compiled(), [], []

    def make(case):
        made.append(case.quant.scale_layout)
        return compiled.make(case)

    original = run.make_buffers

    def make_buffers(case, copies, settings):
        buffers.append(case.context)
        return original(case, copies, settings)

    for module in (compilations, run):  # to compile with, and to be timed on
        monkeypatch.setattr(module, "make_buffers", make_buffers)
    FastestCompilation(FakeTimer(), SETTINGS)(Case(SHAPES[BASE], 2, context="chain"), make)
    assert made == ["column_major"] * 3 and buffers == ["alone"] * 2


def test_only_what_inductor_compiles_goes_through_it():
    asked = []

    def fastest(case, make):
        asked.append(make)
        return make(case), [2.0, 3.0]

    names = ["eager", "inductor", "fused"]
    ((_, prepared),) = check_all([CASE], names, SETTINGS, Results({}), lambda text: None, fastest=fastest)
    assert asked == [VARIANTS["inductor"].make]
    assert {p.variant.name: p.launch for p in prepared} == {
        "eager": None,
        "inductor": {"compilations_us": [2.0, 3.0]},
        "fused": None,
    }
    assert {name for name, variant in VARIANTS.items() if variant.compiled} == {"two_kernel", "inductor"}
