"""Records find the pass that was asked for the key of their artefact, and hash nothing to do so."""

import copy
import gc
import pickle
from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from fusionlib.rewrite import FusionPass, cached_records, fusion_pass
from fusionlib.rewrite.report import CompileRecord
from tests.rewrite.test_fusion_pass import PATH, compiled
from tests.spellings import inputs


@pytest.fixture(autouse=True)
def own_counters():
    """The counters of a process that has compiled nothing yet."""
    counters.clear()


class Owner:
    """Takes records and keeps them."""

    def __init__(self):
        self.taken = []

    def take(self, record):
        self.taken.append(record.nodes)


def loaded(key: str, nodes: int) -> None:
    """A cache brings an artefact under `key`, as Inductor adds the counters that were stored with it."""
    record = CompileRecord((), nodes)
    counters["inductor"] += {f"fusionlib_record:{key}:{record.encode()}": 1}


def test_a_load_belongs_to_who_was_asked_for_its_key_last():
    first, second, other = Owner(), Owner(), Owner()
    cached_records.looked_up(first, "key")
    loaded("key", 1)
    cached_records.looked_up(second, "key")
    loaded("key", 2)
    loaded("key", 2)
    cached_records.looked_up(other, "another")
    loaded("another", 3)
    loaded("key", 1)
    assert (first.taken, sorted(second.taken), other.taken) == ([1], [1, 2, 2], [3])


def test_several_passes_of_one_artefact_each_get_their_record():
    owners = [Owner() for _ in range(3)]
    for i, owner in enumerate(owners):
        cached_records.looked_up(owner, f"key{i}")
    for i in range(3):
        loaded(f"key{i}", i)
    assert [owner.taken for owner in owners] == [[0], [1], [2]]


def test_what_a_collected_pass_did_is_nobody_elses():
    gone, fresh = Owner(), Owner()
    cached_records.looked_up(gone, "key")
    loaded("key", 1)
    del gone
    gc.collect()
    cached_records.looked_up(fresh, "key")
    loaded("key", 2)
    assert fresh.taken == [2]


def test_a_record_that_was_written_here_is_no_load_and_outlives_cleared_counters():
    owner, record = Owner(), CompileRecord((), 5)
    cached_records.looked_up(owner, "key")
    cached_records.write("key", record)
    assert owner.taken == []
    counters.clear()
    cached_records.looked_up(owner, "key")
    loaded("key", 5)
    assert owner.taken == [5]


def test_counters_that_are_cleared_behind_a_warm_compile_lose_nothing():
    tensors = inputs()
    with fresh_cache():
        compiled(PATH, FusionPass(("cpu",)), *tensors)
        warm = FusionPass(("cpu",))
        compiled(PATH, warm, *tensors)
        counters.clear()
        assert [record.cached for record in warm.report().compiles] == [True]
        assert len(warm.report().fused) == 1


def test_what_inductor_makes_of_its_counters_is_plain():
    """Artefacts and copies hold counters; a class of ours among them could not be loaded without us."""
    cached_records.looked_up(Owner(), "key")
    watched = counters["inductor"]
    made = [watched.copy(), watched - Counter(), watched + Counter(), copy.deepcopy(watched)]
    made.append(pickle.loads(pickle.dumps(watched)))
    assert type(watched) is not Counter and all(type(each) is Counter for each in made)


def test_a_fresh_equal_pass_reports_nothing_of_a_collected_one():
    with fresh_cache():
        tensors = inputs()
        compiled(PATH, FusionPass(("cpu",)), *tensors)
        warm = FusionPass(("cpu",))
        compiled(PATH, warm, *tensors)
        del warm
        torch._dynamo.reset()
        gc.collect()
        assert FusionPass(("cpu",)).report().compiles == ()


def test_records_hash_nothing(monkeypatch):
    """Counted: the key is made once for each time that Inductor asks, whatever was recorded before."""
    hashed = []
    for name in ("readers_hash", "combined"):
        original = getattr(fusion_pass, name)
        monkeypatch.setattr(
            fusion_pass, name, lambda *a, original=original, name=name: hashed.append(name) or original(*a)
        )
    passes = [FusionPass(("cpu",)) for _ in range(10)]
    for i, each in enumerate(passes):
        assert each.uuid() is not None
        for nodes in range(30):
            cached_records.write(each._key, CompileRecord((), 100 * i + nodes))
            each.report()
    assert len(hashed) == 2 * len(passes)


def test_an_old_record_is_not_read_again(monkeypatch):
    """Counted: as many records are decoded as were loaded."""
    decoded = []
    original = CompileRecord.decode
    monkeypatch.setattr(CompileRecord, "decode", lambda text: decoded.append(text) or original(text))
    owner = Owner()
    for nodes in range(50):
        cached_records.looked_up(owner, "key")
        loaded("key", nodes)
    assert owner.taken == list(range(50)) and len(decoded) == 50


def test_a_copy_reports_to_the_pass_it_was_copied_from():
    original = FusionPass(("cpu",), expect=1)
    tensors = inputs()
    with fresh_cache():
        compiled(PATH, copy.deepcopy(original), *tensors)
        compiled(PATH, copy.copy(original), *tensors)
    assert [record.cached for record in original.report().compiles] == [False, True]
