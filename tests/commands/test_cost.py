"""`fusionlib cost`: what it counts and prints; its run time is not tested."""

import pytest

from fusionlib.cli import main
from fusionlib.commands.cost import Cost, layered_graph, measure, traced_layer


def test_every_layer_is_one_fused_site():
    cost = measure(3, runs=1)
    assert cost.fused == 3 and cost.seconds > 0
    assert cost.nodes == len(layered_graph(3, traced_layer()).nodes)


def test_layers_are_chained_and_share_their_weights():
    layer = traced_layer()
    one, three = layered_graph(1, layer), layered_graph(3, layer)
    placeholders = [node for node in three.nodes if node.op == "placeholder"]
    assert len(placeholders) == 5 and len(three.nodes) - 6 == 3 * (len(one.nodes) - 6)
    three.lint()
    three.eliminate_dead_code()
    assert len(three.nodes) - 6 == 3 * (len(one.nodes) - 6)  # nothing of an earlier layer is unused


def test_the_rate_is_per_ten_thousand_nodes():
    assert Cost(layers=1, nodes=500, fused=1, seconds=0.02).per_ten_thousand == pytest.approx(0.4)


@pytest.mark.parametrize(("limit", "code", "word"), [(1e9, 0, "kept"), (0.0, 1, "exceeded")])
def test_the_table(monkeypatch, capsys, limit, code, word):
    monkeypatch.setattr("fusionlib.commands.cost.LIMIT", limit)
    assert main(["cost", "--layers", "1", "2", "--runs", "1"]) == code
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["layers", "nodes", "fused", "CPU"] and word in last
    assert [row.split()[0] for row in rows] == ["1", "2"] and [row.split()[2] for row in rows] == ["1", "2"]
    for row in rows:
        _, nodes, _, seconds, rate = map(float, row.split())
        assert rate == pytest.approx(seconds * 10_000 / nodes, rel=0.02)


def test_no_layers_is_an_error():
    with pytest.raises(SystemExit):
        main(["cost", "--layers", "0"])
