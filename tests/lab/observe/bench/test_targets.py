"""Goals with hand-made numbers: met, missed, not measured, and nonexistent."""

from fusionlab.observe.bench.results import Results
from fusionlab.observe.bench.targets import as_json, verdicts
from tests.lab.observe.bench.fakes import row


def judged(*rows):
    return {(v.target, v.tokens): v for v in verdicts(Results({}, list(rows)))}


def agreeing(share, compared):
    return {"codes_differ": share, "steps": 1, "scales_differ": 0.0, "scale_error": 0.0, "compared": compared}


def test_met_and_missed():
    found = judged(
        row("fused", 2.0), row("light", 1.8), row("two_kernel", 4.5), row("inductor", 2.6), row("aiter", 2.4)
    )
    light = found["share of the light", 64]
    assert (light.value, light.goal, light.met) == (0.9, ">= 0.85", True)
    two = found["two kernels / ours", 64]
    assert (two.value, two.goal, two.met) == (2.25, ">= 2.3", False)
    assert found["Inductor / ours", 64].met is True  # 1.3 exactly
    assert (found["AITER / ours", 64].value, found["AITER / ours", 64].met) == (1.2, False)


def test_the_issues_limits_by_size():
    rows = [row(v, us, tokens) for tokens in (1, 256, 1024, 8192, 32768) for v, us in (("fused", 1.0), ("light", 0.97))]
    rows += [row("two_kernel", 2.2, tokens) for tokens in (1, 256, 8192, 32768)]
    found = judged(*rows)
    assert found["share of the light", 256].goal == ">= 0.85" and found["share of the light", 256].met
    assert ("share of the light", 1024) not in found
    assert [found["share of the light", t].met for t in (8192, 32768)] == [False, False]
    assert (found["two kernels / ours", 1].met, found["two kernels / ours", 8192].met) == (False, True)
    assert ("two kernels / ours", 256) not in found


def test_the_strided_gate_must_not_be_slower():
    found = judged(
        *(row("fused", 1.0, t) for t in (256, 1024)), *(row("fused", 1.08, t, "strided") for t in (256, 1024))
    )
    assert [found["strided gate / contiguous", t].met for t in (256, 1024)] == [False, True]
    assert found["strided gate / contiguous", 256].goal == "<= 1.05"


def test_what_was_not_measured_is_neither():
    found = judged(row("fused", 1.0))
    assert (found["AITER / ours", 64].value, found["AITER / ours", 64].met) == (None, None)
    assert as_json([found["AITER / ours", 64]])[0]["met"] is None
    assert judged(row("fused", 1.0, shape="48x128")) == {}


def test_codes():
    many = 8192 * 4096
    found = judged(row("fused", 1.0, 1, agreement=agreeing(1 / 4096, 4096)))
    assert found["codes that differ from eager's", 1].met is True  # a single code of 4096
    found = judged(row("fused", 1.0, 8192, agreement=agreeing(9e-6, many)))
    assert found["codes that differ from eager's", 8192].met is True
    found = judged(row("fused", 1.0, 8192, agreement=agreeing(1.1e-5, many)))
    assert found["codes that differ from eager's", 8192].met is False


def test_the_other_producers_are_judged_by_goals_of_their_own():
    shape = {"shape": "silu_512", "gate": "strided"}
    found = judged(
        *(row(name, us, tokens, **shape) for tokens in (64, 8192) for name, us in
          (("fused", 2.0), ("light", 1.8), ("two_kernel", 4.2), ("inductor", 1.9))),
    )  # fmt: skip
    goals = {key: (v.goal, v.met) for key, v in found.items()}
    assert goals["silu_512: share of the light", 64] == (">= 0.85", True)
    assert goals["silu_512: share of the light", 8192] == (">= 0.98", False)
    assert goals["silu_512: two kernels / ours", 64] == (">= 2", True)
    assert ("silu_512: two kernels / ours", 8192) not in goals
    assert goals["silu_512: Inductor / ours", 64] == (">= 1", False)
    assert goals["silu_512: codes that differ from eager's", 64] == ("<= 1e-05", None)
    assert not any("AITER" in target or "strided" in target for target, _ in found)


def test_a_norm_is_judged_in_its_one_layout():
    found = judged(row("fused", 1.0, 1, shape="add_norm_7168"), row("light", 0.9, 1, shape="add_norm_7168"))
    assert found["add_norm_7168: share of the light", 1].met is True
    assert found["add_norm_7168: two kernels / ours", 1].met is None
