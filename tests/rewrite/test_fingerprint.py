"""What a reader computes with is in the key of the caches, whatever way it holds it; else nothing is cached."""

import collections
import dataclasses
import enum
import functools
import logging
import operator
import os
import random
import re
import subprocess
import sys
import threading
import time
import types

import pytest
import torch

from fusionlib import GroupQuant
from fusionlib.match import OpaqueQuant, register_quant_op
from fusionlib.match.opaque import readers_kept, registered
from fusionlib.rewrite import Chain, FusionPass, cache_key
from fusionlib.rewrite.cache_key import PACKAGE, readers_hash, source_files
from fusionlib.rewrite.fingerprint import NoFingerprint, covered_by, fingerprint

FLOOR = 1e-10
SETTINGS = {"floors": [1e-10]}
somewhere = types.ModuleType("somewhere")
somewhere.FLOOR = 1e-10


def read(arguments, floor):
    return OpaqueQuant(arguments["y"], GroupQuant(floor=floor))


# One way to hold a floor each; all are `reader(arguments)`.


def in_a_constant(floor):
    source = f"lambda a: read(a, {floor!r})"
    return eval(source, {"read": read})


def in_a_nested_constant(floor):
    return eval(f"lambda a: [read(x, {floor!r}) for x in (a,)][0]", {"read": read})


def in_a_closure(floor):
    return lambda a: read(a, floor)


def in_a_closure_of_a_closure(floor):
    def inner():
        return floor

    return lambda a: read(a, inner())


def in_a_list_of_a_closure(floor):
    floors = [None, {"floor": (floor,)}]
    return lambda a: read(a, floors[1]["floor"][0])


def in_a_default(floor):
    return lambda a, floor=floor: read(a, floor)


def in_a_keyword_default(floor):
    return lambda a, *, floor=floor: read(a, floor)


def in_a_partial(floor):
    return functools.partial(read, floor=floor)


def in_a_partial_of_partials(floor):
    return functools.partial(functools.partial(lambda a, f: read(a, f)), f=floor)


def with_globals(source, **names):
    return eval(source, {"read": read, **names})


def in_a_global(floor):
    return with_globals("lambda a: read(a, FLOOR)", FLOOR=floor)


def in_a_global_of_a_function_it_calls(floor):
    return with_globals("lambda a: helper(a)", helper=in_a_global(floor))


def in_a_default_of_a_function_it_calls(floor):
    return with_globals("lambda a: helper(a)", helper=in_a_default(floor))


def in_a_global_that_nested_code_names(floor):
    return with_globals("lambda a: (lambda: read(a, FLOOR))()", FLOOR=floor)


def in_a_module(floor):
    config = types.ModuleType("config")
    config.quant = types.ModuleType("config.quant")
    config.quant.floor = floor
    return with_globals("lambda a: read(a, config.quant.floor)", config=config)


def in_a_module_of_a_closure(floor):
    config = types.ModuleType("config")
    config.floor = floor
    return lambda a: read(a, config.floor)


class Reader:
    """State on an instance, called by itself or by a bound method."""

    def __init__(self, floor):
        self.floor = floor

    def __call__(self, a):
        return read(a, self.floor)

    def method(self, a):
        return read(a, self.floor)


class Slotted:
    """State in a slot."""

    __slots__ = ("floor",)

    def __init__(self, floor):
        self.floor = floor

    def __call__(self, a):
        return read(a, self.floor)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """State in a dataclass."""

    floor: float | None = None

    def __call__(self, a):
        return read(a, self.floor)


class Listed(list):
    """State in a container that it is."""

    def __call__(self, a):
        return read(a, self[0])


def in_a_class(floor):
    return type("Made", (), {"floor": floor, "__call__": lambda self, a: read(a, self.floor)})()


def in_a_base_class(floor):
    base = type("Base", (), {"floor": floor})
    return type("Made", (base,), {"__call__": lambda self, a: read(a, self.floor)})()


def in_the_call_of_a_class(floor):
    return type("Made", (), {"__call__": in_a_closure_with_self(floor)})()


def in_a_closure_with_self(floor):
    return lambda self, a: read(a, floor)


def in_a_property(floor):
    made = {"floor": property(lambda self: floor), "__call__": lambda self, a: read(a, self.floor)}
    return type("Made", (), made)()


def in_a_metaclass(floor):
    meta = type("Meta", (type,), {"floor": floor})
    return meta("Made", (), {"__call__": lambda self, a: read(a, type(self).floor)})()


def in_a_class_method(floor):
    return type("Made", (), {"floor": floor, "reader": classmethod(lambda cls, a: read(a, cls.floor))}).reader


def in_a_static_method(floor):
    return type("Made", (), {"reader": staticmethod(in_a_closure(floor))}).reader


def in_what_is_wrapped(floor):
    inner = in_a_closure(floor)

    @functools.wraps(inner)
    def wrapper(a):
        return inner(a)

    return wrapper


def in_a_wrapper_of_the_librarys(floor):
    """Takes the name of a function of fusionlib, which is known by its name only while it stands for it."""

    @functools.wraps(registered()["fusionlib::group_quant"].reader)
    def wrapper(a):
        return read(a, floor)

    return wrapper


def in_an_attribute_of_the_function(floor):
    def reader(a):
        return read(a, reader.floor)

    reader.floor = floor
    return reader


def in_an_enum(floor):
    kind = enum.Enum("Kind", {"FLOOR": floor})
    return lambda a: read(a, kind.FLOOR.value)


def in_a_member_of_an_enum(floor):
    member = enum.Enum("Kind", {"FLOOR": floor}).FLOOR
    return lambda a: read(a, member.value)


def in_a_namedtuple(floor):
    held = collections.namedtuple("Held", "floor")(floor)
    return lambda a: read(a, held.floor)


def in_an_ordered_dict(floor):
    held = collections.OrderedDict(floor=floor)
    return lambda a: read(a, held["floor"])


def in_a_defaultdict(floor):
    held = collections.defaultdict(lambda: floor)
    return lambda a: read(a, held["floor"])


def in_a_deque(floor):
    held = collections.deque([floor])
    return lambda a: read(a, held[0])


def in_a_set(floor):
    held = {floor}
    return lambda a: read(a, min(held))


def in_a_namespace(floor):
    held = types.SimpleNamespace(floor=floor)
    return lambda a: read(a, held.floor)


def in_a_bound_method_of_a_dict(floor):
    get = {"floor": floor}.get
    return lambda a: read(a, get("floor"))


def in_a_getter(floor):
    pick, floors = operator.itemgetter(int(floor is None)), (1e-10, None)
    return lambda a: read(a, pick(floors))


def in_a_pattern(floor):
    pattern = re.compile(repr(floor))
    return lambda a: read(a, 1e-10 if pattern.match("1e-10") else None)


def in_a_partial_method(floor):
    return type("Made", (), {"reader": functools.partialmethod(lambda self, a, f: read(a, f), f=floor)})().reader


def in_a_cached_property(floor):
    held = functools.cached_property(lambda self: floor)
    held.__set_name__(None, "floor")
    return type("Made", (), {"floor": held, "__call__": lambda self, a: read(a, self.floor)})()


WAYS = {
    name: way for name, way in list(globals().items()) if name.startswith("in_") and name != "in_a_closure_with_self"
} | {
    "an instance": Reader,
    "a bound method": lambda floor: Reader(floor).method,
    "a slot": Slotted,
    "a dataclass": Frozen,
    "a container": lambda floor: Listed([floor]),
}
covered = covered_by(source_files())


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_hold_a_floor_is_in_the_fingerprint(way):
    make = WAYS[way]
    for floor in (1e-10, None):
        assert make(floor)({"y": None}).spec.floor == floor  # it does hold it
    prints = [fingerprint(make(floor), covered) for floor in (1e-10, None, 1e-10)]
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda a: a["y"] + 1, lambda a: a["y"] - 1),
        (lambda a: a["y"].x, lambda a: a["y"].y),
        (lambda a: len(a), lambda a: max(a)),
        (lambda a: operator.add, lambda a: operator.sub),
        (lambda a: torch.float8_e4m3fn, lambda a: torch.float8_e5m2),
        (lambda a: torch.ops.aten.add.Tensor, lambda a: torch.ops.aten.mul.Tensor),
        (lambda a, k=0: k, lambda a, *, k=0: k),
        (lambda a, k=0.0: k, lambda a, k=-0.0: k),
        (lambda a, k=1: k, lambda a, k=True: k),
        (lambda a, k=(1,): k, lambda a, k=[1]: k),
    ],
)
def test_another_code_has_another_fingerprint(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_what_holds_itself_ends():
    held = {}
    held["self"] = held

    def reader(a):
        return reader, held

    assert fingerprint(reader) == fingerprint(reader)


class Remembers:
    """Has a state that its own `__reduce__` hides; it counts all the same."""

    def __init__(self, floor):
        self.floor = floor

    def __reduce__(self):
        return Remembers, (0.0,)


def test_state_that_pickling_hides_counts():
    assert fingerprint(Remembers(1.0)) != fingerprint(Remembers(2.0))


FIRST = torch.tensor(1e-10)
NUMBERS = iter([1e-10])
GENERATED = (floor for floor in (1e-10,))
LOCK = threading.Lock()
MADE = functools.lru_cache(in_a_global)

UNSEEN = {
    "the environment": (lambda a: os.environ["FLOOR"], "environ"),
    "a function that asks the environment": (lambda a: os.getenv("FLOOR"), "environ"),
    "a file": (lambda a: open("floor"), "open"),  # noqa: SIM115
    "chance": (lambda a: random.random(), "random"),
    "a module as a whole": (lambda a: somewhere, "somewhere"),
    "a module through getattr": (lambda a: getattr(somewhere, "FL" + "OOR"), "somewhere"),
    "all globals": (lambda a: globals()["FLOOR"], "globals"),
    "code made at run time": (lambda a: eval("FLOOR"), "eval"),
    "a setting of torch": (lambda a: torch.get_default_dtype(), "get_default_dtype"),
    "an import when it is called": (with_globals("lambda a: __import__('somewhere').FLOOR"), "__import__"),
    "a tensor": (lambda a: FIRST, "Tensor"),
    "a module of torch": (torch.nn.Linear(2, 2), "Linear"),
    "an iterator": (lambda a: next(NUMBERS), "iterator"),
    "a generator": (lambda a: next(GENERATED), "generator"),
    "a cache of results": (lambda a: MADE(1), "lru_cache"),
    "a lock": (lambda a: LOCK, "lock"),
    "another's C code": (lambda a: time.time(), "time"),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_cannot_be_seen_has_no_fingerprint(what):
    reader, named = UNSEEN[what]
    with pytest.raises(NoFingerprint, match=f"(?i){named}"):
        fingerprint(reader, covered)


def test_a_large_world_has_no_fingerprint(monkeypatch):
    monkeypatch.setattr("fusionlib.rewrite.fingerprint._MOST_OBJECTS", 100)
    with pytest.raises(NoFingerprint, match="100 objects"):
        fingerprint(lambda a, floors=tuple(range(200)): floors)


def test_the_readers_of_the_library_are_hashed():
    assert readers_hash() == readers_hash() is not None and FusionPass().uuid() is not None


@pytest.mark.parametrize("way", WAYS)
def test_the_uuid_follows_what_a_reader_holds(way):
    uuids = []
    for floor in (1e-10, None, 1e-10):
        with readers_kept():
            register_quant_op("other::quant", WAYS[way](floor))
            uuids.append(FusionPass().uuid())
    assert uuids[0] == uuids[2] != uuids[1] and None not in uuids


def test_state_that_changes_after_registration_counts():
    reader = Reader(1e-10)
    with readers_kept():
        register_quant_op("other::quant", reader)
        before = FusionPass().uuid()
        reader.floor = None
        assert FusionPass().uuid() != before


def test_a_reader_that_cannot_be_hashed_keeps_everything_out_of_caches_and_says_so_once(caplog):
    cache_key._warn_once.cache_clear()
    with readers_kept():
        register_quant_op("other::quant", UNSEEN["the environment"][0])
        with caplog.at_level(logging.WARNING, "fusionlib"):
            assert FusionPass().uuid() is None and FusionPass().uuid() is None
            assert Chain(FusionPass()).uuid() is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert "other::quant" in message and "environ" in message and "version=" in message


def test_a_version_stands_for_the_reader():
    uuids = []
    for version in ("1", "1", "2"):
        with readers_kept():
            register_quant_op("other::quant", UNSEEN["the environment"][0], version=version)
            uuids.append(FusionPass().uuid())
    assert uuids[0] == uuids[1] != uuids[2] and None not in uuids
    for wrong in (2, ""):
        with pytest.raises(TypeError, match="version="):
            register_quant_op("other::quant", Reader(1.0), version=wrong)
    assert "other::quant" not in registered()


SCRIPT = """
import os, sys
import torch
from fusionlib import FusionPass, GroupQuant, reference
from fusionlib.match import OpaqueQuant, register_quant_op
from fusionlib.match.opaque import readers_kept
from tests.spellings import NormSpelling

floor = float(sys.argv[1])

def quant(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.group_quant(y, GroupQuant(floor=floor))

def in_a_closure(floor):
    return lambda a: OpaqueQuant(a["y"], GroupQuant(floor=floor))

def cannot_be_hashed(floor):
    return lambda a: OpaqueQuant(a["y"], GroupQuant(floor=float(os.environ.get("NONE", floor))))

torch.manual_seed(0)
x, z = torch.randn(2, 6, 4, 128).bfloat16()
w = torch.rand(128).bfloat16()
for reader_of in (in_a_closure, cannot_be_hashed):
    name = f"other::{reader_of.__name__}"
    op = torch.library.custom_op(name, quant, mutates_args=())
    op.register_fake(lambda y: reference.group_quant(y, GroupQuant()))
    fusion = FusionPass("cpu")
    with readers_kept(), torch.no_grad():
        register_quant_op(name, reader_of(floor))
        fn = lambda x, z, w: op(NormSpelling()(x, z * 1e-4, w).flatten(1))
        codes, scale = torch.compile(fn, options={"post_grad_custom_pre_pass": fusion})(x, z, w)
        eager_codes, eager_scale = fn(x, z, w)
        report = fusion.report()
    assert len(report.fused) == 1, str(report)
    assert torch.equal(scale, eager_scale), (scale, eager_scale)
    assert torch.equal(codes.float(), eager_codes.float())
    print(report.compiles[0].cached, float(scale.min()))
"""


def test_a_second_process_with_a_warm_cache_computes_with_its_own_floor(tmp_path):
    """The smallest value is 1e-4 of a usual one: one floor decides all scales, the other none.

    A graph comes from the cache for the same floor alone, and never where it cannot be told what a reader depends on.
    """
    script = tmp_path / "reads.py"
    script.write_text(SCRIPT)
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(PACKAGE.parent)}

    def run(floor: str) -> list[list[str]]:
        command = [sys.executable, str(script), floor]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    runs = run("1e-10"), run("0.01"), run("1e-10")
    for (small, large, again), cached in zip(zip(*runs, strict=True), (True, False), strict=True):
        assert (small[0], large[0], again[0]) == ("False", "False", str(cached))
        assert float(large[1]) == pytest.approx(0.01 / 448) and small[1] == again[1] != large[1]
