"""Files are named as they are imported, notebook cells as cells; no folder of the machine is told."""

import os
import sys

import torch
from torch import fx

from fusionlib import reference
from fusionlib.match.source_lines import short_path, source_line, source_text


def node_with(trace: str | None) -> fx.Node:
    graph = fx.Graph()
    node = graph.placeholder("x")
    if trace is not None:
        node.meta["stack_trace"] = trace
    return node


TRACE = '  File "/tmp/ipykernel_71/2938.py", line 4, in outer\n    return inner(x)\n' + (
    '  File "/home/someone/model.py", line 12, in inner\n    y = x / scale\n'
)


def test_the_last_frame_counts(monkeypatch):
    assert source_line(node_with(TRACE)) == "model.py:12"
    assert source_text(node_with(TRACE)) == "y = x / scale"
    assert source_line(node_with(TRACE.split("  File")[1].join(["  File", ""]))) == "cell:4"


def test_a_layer_of_pytorch_is_where_it_is_called():
    inside = f'  File "{torch.nn.functional.__file__}", line 3, in rms_norm\n    return torch.rms_norm(x)\n'
    assert source_line(node_with(TRACE + inside)) == "model.py:12"
    assert source_line(node_with(inside)) == "torch/nn/functional.py:3"


def test_nothing_recorded():
    assert source_line(node_with(None)) is None and source_text(node_with(None)) == ""
    without_text = node_with('  File "/home/someone/model.py", line 12, in inner\n')
    assert source_line(without_text) == "model.py:12" and source_text(without_text) == ""
    two = node_with('  File "/a/b.py", line 1, in f\n  File "/a/c.py", line 2, in g\n    z\n')
    assert (source_line(two), source_text(two)) == ("c.py:2", "z")


def test_a_file_is_named_from_the_folder_it_is_imported_from(monkeypatch):
    assert short_path(reference.__file__) == "fusionlib/reference.py"
    assert short_path(torch.nn.functional.__file__) == "torch/nn/functional.py"
    nested = os.path.join(os.sep, "home", "someone", "project")
    monkeypatch.setattr(sys, "path", [os.path.dirname(nested), nested])
    assert short_path(os.path.join(nested, "models", "gdn.py")) == "models/gdn.py"
    assert short_path(os.path.join(nested + "s", "gdn.py")) == "projects/gdn.py"
    assert short_path(os.path.join(os.sep, "opt", "gdn.py")) == "gdn.py"
    monkeypatch.setattr(sys, "path", [os.sep])
    assert short_path(os.path.join(nested, "gdn.py")) == "gdn.py"


def test_what_is_no_file_stays():
    assert short_path("<eval_with_key>.3") == "<eval_with_key>.3"
