"""Paths of modules in few words, and sites that differ in their layer alone as one line."""

import pytest

from fusionlib.rewrite.report import CompileRecord, Report, Site
from fusionlib.rewrite.site_classes import spell_modules


@pytest.mark.parametrize(
    ("paths", "spelt"),
    [
        ([], ""),
        (["", ""], ""),
        (["norm"], "norm"),
        (["layers.3.out", "layers.3.out"], "layers.3.out"),
        (["layers.0.out", "layers.2.out", "layers.1.out", "layers.4.out"], "layers.{0-2,4}.out"),
        (["0", "1", "2.a"], "{0-1}, 2.a"),
        (["layers.0.out", "head", "layers.1.out", "layers.0.up"], "layers.{0-1}.out, head, layers.0.up"),
        (["a.0.b.0", "a.0.b.1"], "a.0.b.{0-1}"),
        (["a.0.b.0", "a.1.b.1"], "a.0.b.0, a.1.b.1"),  # which of four there are would be lost
        (["a{b}.0", "a{b}.1"], "a{b}.{0-1}"),
        (["conv2.0", "conv3.0"], "conv2.0, conv3.0"),  # a number inside of a name is part of it
    ],
)
def test_paths_in_few_words(paths, spelt):
    assert spell_modules(paths) == spelt


def site(outcome="fused", module="", anchor="codes", **changes) -> Site:
    return Site(outcome, anchor, anchor, "model.py:8", (), module=module, **changes)


def lines(*sites: Site) -> list[str]:
    return str(Report((CompileRecord(sites),))).splitlines()[1:]


def test_layers_of_one_kind_are_one_line_and_other_kinds_are_not():
    fused = [site(module=f"layers.{i}.out", anchor=f"q{i}", what="norm", fusion="gated_norm") for i in range(3)]
    other = site(module="layers.1.up", anchor="q7", what="sum", fusion="rms_norm")
    assert lines(*fused, other) == [
        "fused    3 sites in layers.{0-2}.out at model.py:8: norm",
        "fused    %q7 in layers.1.up at model.py:8: sum",
    ]


def test_unclaimed_sites_are_one_line_for_each_producer_whatever_their_nodes_are_called():
    saving = {"outcome": "unclaimed", "what": "a fusion would save 8 bytes"}
    found = [site(found=f"%mm_{i} = aten.mm.default (float32 [3, 512])", anchor=f"q{i}", **saving) for i in range(2)]
    tanh = site(found="%tanh = aten.tanh.default (float32 [3, 512])", **saving)
    first, second = lines(*found, tanh)
    assert first.startswith("unclaimed 2 sites at model.py:8: no fusion starts from %mm_0 = aten.mm")
    assert second.startswith("unclaimed %codes at model.py:8: no fusion starts from %tanh")


def test_without_a_module_only_the_nodes_tell_sites_apart():
    assert [line.split(" at ")[0] for line in lines(site(anchor="a"), site(anchor="b"))] == [
        "fused    %a",
        "fused    %b",
    ]


def test_a_refusal_of_several_layers_names_them_and_the_way_out_once():
    refused = [site("refused", f"layers.{i}", f"q{i}", code="device", expected="a GPU", found="cpu") for i in (0, 2)]
    text = lines(*refused)
    assert text[0] == "refused  2 sites in layers.{0,2} [device] at %q0 at model.py:8"
    assert text[-1].startswith("         fix: ") and len(text) == 4


def test_the_table_of_a_notebook_has_the_same_classes():
    shown = Report((CompileRecord((site(module="a.0"), site(module="a.1"), site(module="b"))),))._repr_html_()
    assert shown.count("<tr>") == 1 + 1 and "3 sites: a.{0-1}, b" in shown
