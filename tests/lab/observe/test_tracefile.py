"""Trace files as profilers really write them, damaged ones, and malicious ones."""

import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionlab.observe.trace import Limits, TraceError, read_trace
from fusionlab.observe.tracefile import read_values
from tests.lab.observe.traces import EVENTS, GEOMETRY, kernel, write


def indented(name: str, start: int, cat: str = "kernel", **change: str) -> str:
    """An event in Kineto's layout, with its values inserted verbatim; a GPU event has a stream and a correlation."""
    fields = {"pid": "0", "tid": "7", "ts": f"{start}.000", "dur": "2.000"} | change
    args = f'"stream": 7, "correlation": {start}'
    return (
        f'\n  {{\n    "ph": "X", "cat": "{cat}", "name": "{name}", "pid": {fields["pid"]}, "tid": {fields["tid"]},'
        f'\n    "ts": {fields["ts"]}, "dur": {fields["dur"]},'
        f'\n    "args": {{\n      {args}{fields.get("more", "")}\n    }}\n  }}'
    )


def compact(*args: str, **change: str) -> str:
    """The same in the layout of other tools."""
    return "".join(line.strip() for line in indented(*args, **change).splitlines())


def file_of(*events: str) -> str:
    """A file around `events`."""
    return f'{{"schemaVersion": 1, "traceEvents": [{",".join(events)}], "traceName": "t.json"}}'


#: What is wrong, the event (a function of the layout), the name that is read (None: skipped), and the message.
FAULTS = {
    "quotes": (lambda e: e('{"device": "cpu"}(12): run', 20), '{"device": "cpu"}(12): run', "mended"),
    "a suffix": (lambda e: e('operator"" _kg', 20), 'operator"" _kg', "mended"),
    "a line end": (lambda e: e("two\nlines", 20), "two\nlines", None),
    "a control character": (lambda e: e("a\x01b", 20), "a\x01b", None),
    "a path": (lambda e: e("C:\\Users\\x.py", 20), "C:\\Users\\x.py", "mended"),
    "escapes": (lambda e: e(r"a \"b\" c", 20), 'a "b" c', None),
    "no number": (lambda e: e("k", 20, more=', "bandwidth": inf, "x": [-nan, 1]'), "k", "mended"),
    "bytes": (lambda e: e("caf\udce9", 20), "caf�", "no UTF-8"),
    "time before the point": (lambda e: e("k", 20, dur="0.-01"), None, "skipped: no JSON"),
    "nothing": (lambda e: e("k", 20, ts=""), None, "skipped: no JSON"),
    "a duration": (lambda e: e("k", 20, dur="-1"), None, "skipped: a negative duration"),
    "an open string": (lambda e: e('k", "pid', 20, tid='"7'), None, "skipped: no JSON"),
}


@pytest.mark.parametrize("layout", [indented, compact])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_event_costs_no_other(tmp_path, monkeypatch, fault, place, chunk, layout):
    monkeypatch.setattr("fusionlab.observe.tracefile._CHUNK", chunk)
    make, name, said = FAULTS[fault]
    events = [layout("first", 10), layout("last", 30)]
    events.insert(place, make(layout))
    path = tmp_path / "t.json"
    path.write_bytes(file_of(*events).encode("utf-8", "surrogateescape"))
    trace = read_trace(path)
    expected = ["first", name if layout is indented or name != "two\nlines" else "twolines", "last"]
    assert [k.name for k in trace.kernels] == [one for one in expected if one]
    assert all(k.duration_us == 2.0 for k in trace.kernels)
    assert [k.start_us for k in trace.kernels] == ([10, 20, 30] if name else [10, 30])
    if said is None:
        assert trace.flaws == ()
    else:
        (flaw,) = trace.flaws
        assert said in flaw.what and flaw.count == 1 and flaw.first.startswith(f"event {place} of traceEvents")
        assert flaw.lost == (name is None)


@pytest.mark.parametrize("damage", ['}}"', ", {", "}}}.", "", "]", "}}, 1, x", "\\"])
def test_damage_where_an_event_ends(tmp_path, damage):
    path = tmp_path / "t"
    path.write_text(file_of(compact("a", 10), compact("k", 20)[:-2] + damage, compact("b", 30), compact("c", 40)))
    trace = read_trace(path)
    assert [k.name for k in trace.kernels if k.name != "k"] == ["a", "b", "c"]
    assert trace.flaws


def test_many_bad_events_are_counted_by_kind_and_the_first_is_named(tmp_path):
    bad = [indented(f"frame {i}", 20 + i, "python_function", dur="0.-01") for i in range(5)]
    path = tmp_path / "t.json"
    path.write_text(file_of(indented("k", 10), *bad, indented("gone", 11, ts="")))
    assert [str(flaw) for flaw in read_trace(path).flaws] == [
        "5 python_function events skipped: no JSON; the first is event 1 of traceEvents (frame 0)",
        "1 kernel event skipped: no JSON; it is event 6 of traceEvents (gone)",
    ]


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_cut_off_anywhere_gives_what_is_before(tmp_path, compress):
    """And says in or after which event it ends."""
    content = json.dumps([kernel(i + 1, 10 * i, 1, name=f"k{i}") for i in range(5)], indent=1).encode()
    whole = gzip.compress(content, mtime=0) if compress else content
    path = tmp_path / "t"
    seen = set()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        try:
            trace = read_trace(path)
        except TraceError as error:
            assert str(path) in str(error)
            seen.add(0)
            continue
        count = len(trace.kernels)
        assert [k.name for k in trace.kernels] == [f"k{i}" for i in range(count)]
        flaw = trace.flaws[0]
        assert ("damaged or cut off" if compress else "the file ends early") in flaw.what and flaw.lost
        assert flaw.first.removeprefix("in ").startswith(f"event {count} of traceEvents") or flaw.first.startswith(
            f"behind event {count - 1} of traceEvents"
        )
        seen.add(count)
    assert seen >= ({0, 5} if compress else {0, 1, 2, 3, 4, 5})


def test_a_file_that_ends_in_an_event_names_it(tmp_path):
    path = tmp_path / "t"
    path.write_text(file_of(indented("k", 10), indented("torn", 20)).partition('"stream": 7, "correlation": 20')[0])
    assert [str(flaw) for flaw in read_trace(path).flaws] == ["the file ends early, in event 1 of traceEvents (torn)"]


@pytest.mark.parametrize(
    ("content", "kernels", "said"),
    [
        ('{"traceName": "C:\\Users", "traceEvents": [K]}', 1, "beside the events is no JSON"),
        ('{"traceEvents": [K], "ERROR": ["a "b" c"]}', 1, "beside the events is no JSON"),
        ('{"traceEvents": [K], "a": 1} x', 1, "text follows the end"),
        ('{"traceEvents": [K], "traceEvents": [K]}', 2, None),
        ('{"traceEvents": [,K,,{}K,]}', 2, None),
        ('{"traceEvents": [K, 1, null]}', 1, "2 events skipped: no object; the first is event 1 "),
        ('{"traceEvents": [K], "a": ', 1, "cut off"),
        ("[K]", 1, None),
        ("[K,\n", 1, "the file ends early, behind event 0"),
        ("\ufeff[K]", 1, None),
    ],
)
def test_around_the_events(tmp_path, content, kernels, said):
    path = tmp_path / "t"
    path.write_text(content.replace("K", compact("k", 10)), encoding="utf-8")
    trace = read_trace(path)
    assert len(trace.kernels) == kernels
    assert [said in str(flaw) for flaw in trace.flaws] == ([True] if said else [])


def test_a_value_over_the_limit_is_skipped_wherever_it_is(tmp_path, monkeypatch):
    long = ', "x": [{"a": "X"}, {"a": "' + "y" * 3000 + '"}]'
    path = tmp_path / "t"
    path.write_text(
        '{"a": "' + "z" * 3000 + '",' + file_of(compact("k", 10), compact("long", 20, more=long), compact("l", 30))[1:]
    )
    for chunk in (64, 1 << 20):
        monkeypatch.setattr("fusionlab.observe.tracefile._CHUNK", chunk)
        trace = read_trace(path, Limits(value_chars=1000))
        assert [k.name for k in trace.kernels] == ["k", "l"]
        assert "longer than 1000 characters (Limits.value_chars)" in str(trace.flaws[-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with neither"),
        (b"PK\x03\x04", "starts with neither"),
        (b"{}", "no 'traceEvents'"),
        (b'{"traceEvents": 1}', "not a list"),
        (b'{"traceEvents": []} x', "text follows"),
        (b"{1: []}", "no 'traceEvents'"),
        (b'{"traceEvents": [1]}', "nothing can be read: 1 event skipped: no object"),
        (b'{"traceEvents": [{"a": ', "ends early"),
        (b'{"traceEvents": [' + b"[" * 200_000, "ends early"),
        (b'{"traceEvents": [' + b"9" * 5000 + b"]}", "ends early"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:-6], "damaged or cut off"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:12] + b"\x99" * 20, "damaged or cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:16]),  # one of them has 200,000 bytes
)
def test_files_without_anything_to_read_are_errors(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_no_file_a_folder_and_a_pipe(tmp_path):
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "absent")
    with pytest.raises(TraceError, match="not a regular file"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="not a file name"):
        read_trace("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(TraceError, match="not a regular file"):
            read_trace(tmp_path / "pipe")


def test_limits_hold_and_are_named(tmp_path):
    path = write(tmp_path / "t", EVENTS)
    for field, value in (("text_bytes", 100), ("events", 3)):
        for compress in (False, True):
            with pytest.raises(TraceError, match=f"Limits.{field}"):
                read_trace(write(tmp_path / "t", EVENTS, compress), Limits(**{field: value}))
    assert read_trace(path, Limits(events=len(EVENTS))).kernels
    with pytest.raises(ValueError, match="events=0"):
        Limits(events=0)


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # sparse
    with pytest.raises(TraceError, match=r"1073741824 bytes of text \(1 GiB\); raise Limits.text_bytes"):
        read_trace(path)


def test_a_gzip_bomb_is_stopped_early(tmp_path):
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"traceEvents": [')
        for _ in range(64):
            file.write(b" " * (1 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(TraceError, match=r"Limits\.text_bytes"):
        read_trace(path, Limits(text_bytes=8 << 20))


def test_events_across_every_chunk_edge(tmp_path, monkeypatch):
    """The window is refilled at any place, inside numbers, escapes and multi-byte characters."""
    events = [kernel(i + 1, i + 0.125, 0.5, name=f'k{i} "é\\u2028" \u4e2d') for i in range(20)]
    path = tmp_path / "t"
    top = {"baseTimeNanoseconds": 1790857026000000000, "scale": -1.5e-3, "traceEvents": events, "last": True}
    path.write_text(json.dumps(top, ensure_ascii=False), encoding="utf-8")
    values = [(key, value) for key, value in top.items() if key != "traceEvents"]
    values[2:2] = [("traceEvents", event) for event in events]
    for chunk in (1, 2, 3, 7, 64, 1 << 20):
        monkeypatch.setattr("fusionlab.observe.tracefile._CHUNK", chunk)
        assert list(read_values(path)) == values


WHOLE = json.dumps({"traceEvents": EVENTS}).encode()
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def only_trace_errors(path):
    try:
        read_trace(path)
    except TraceError as error:
        assert str(path) in str(error)


@given(st.data())
def test_mutated_bytes_raise_nothing_else(tmp_path_factory, data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    content = bytes(content)
    if data.draw(st.booleans()):
        content = gzip.compress(content)[: data.draw(st.integers(1, 2000))]
    path = tmp_path_factory.mktemp("mutated") / "t"
    path.write_bytes(content)
    only_trace_errors(path)


@given(st.data())
def test_what_a_mutation_does_not_touch_is_read(tmp_path_factory, data):
    """One of ten events is damaged; the other nine are read unchanged."""
    events = [kernel(i + 1, 10.0 * i, 1.5, name=f"k{i}") for i in range(10)]
    texts = [json.dumps(event) for event in events]
    hit = data.draw(st.integers(0, 9))
    at = data.draw(st.integers(1, len(texts[hit]) - 2))
    junk = data.draw(st.text(alphabet="\"\\'{}:, x-.0\n", max_size=5))
    texts[hit] = texts[hit][:at] + junk + texts[hit][at + data.draw(st.integers(0, 3)) :]
    path = tmp_path_factory.mktemp("mutated") / "t"
    path.write_text('{"traceEvents": [' + ", ".join(texts) + "]}", encoding="utf-8")
    values = [value for _, value in read_values(path)]
    assert [event for i, event in enumerate(events) if i != hit and event not in values] == []


@given(st.integers(1, len(EVENTS) - 1), st.sampled_from(["ts", "dur", "name", "cat", "ph", "pid", "tid", "args"]), JSON)
def test_mutated_fields_raise_nothing_else(tmp_path_factory, index, field, value):
    events = [dict(event) for event in EVENTS]
    events[index][field] = value
    only_trace_errors(write(tmp_path_factory.mktemp("mutated") / "t", events))


@given(st.integers(1, 7), st.sampled_from([*GEOMETRY, "correlation", "External id", "stream", "device"]), JSON)
def test_mutated_arguments_raise_nothing_else(tmp_path_factory, index, field, value):
    events = [dict(event) for event in EVENTS]
    events[index]["args"] = events[index]["args"] | {field: value}
    only_trace_errors(write(tmp_path_factory.mktemp("mutated") / "t", events))
