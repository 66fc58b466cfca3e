"""The words say what the recorded step holds."""

from fusionlab.observe.step.decode_sizes import LINEAR
from fusionlab.observe.step.recorded_step import BlockKernels
from fusionlab.observe.step.recorded_text import check_table, check_text, padding_text, step_table, why_more_kernels
from tests.lab.observe.step import recorded


def cells(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_table_of_steps(tmp_path):
    lines = cells(step_table(recorded.write(tmp_path)))
    assert lines[0] == "tokens variant µs 10th to 90th saved kernels quantising MB"
    assert lines[1] == "2 quantisation opaque 1000 995 to 1010 43 + 43 4 + 4 -"
    assert lines[4] == "2 all fused 900 895 to 910 +10.0% - - 2.2"
    assert lines[6] == "16 Inductor alone 2080 2070 to 2100 -4.0% - - -"


def test_predicted_and_measured(tmp_path):
    found = recorded.write(tmp_path)
    assert cells(check_table(found))[1:] == ["2 70 100 +30 +10 +12 +3 +5", "16 120 100 -20 - - - -"]
    few, many = map(check_text, found.checks)
    assert few == (
        "2 tokens: predicted 70 µs without 32 quantisation kernels, measured 100 µs, 30 µs more. By one replay of a "
        "block of each kind, the 32 fused kernels take 10 µs less than the 38 kernels whose work they do besides the "
        "quantisation, 6 of which went without being predicted. +12 µs are from kernels that both run, +3 µs from "
        "other gaps, and +5 µs not in the traces of single blocks."
    )
    assert many == "16 tokens: predicted 120 µs without 32 quantisation kernels, measured 100 µs, 20 µs less."


def test_the_parts_in_words_add_up_to_the_residual(tmp_path):
    check = recorded.write(tmp_path).checks[0]
    assert sum(map(int, cells(check_table(recorded.write(tmp_path)))[1].split()[4:])) == check.residual_us


def test_why_a_block_has_more_kernels_where_rows_are_padded(tmp_path):
    text = padding_text(recorded.write(tmp_path))
    assert text.startswith(
        "At 2 tokens a linear block has 43 kernels, at 16 tokens 26: the FP8 product takes a multiple of 4"
    )
    assert "each of a block's 4 products" in text
    assert text.endswith("Copies and fills are 20 of the 43, and 3 of the 26.")


def test_nothing_is_said_of_padding_where_nothing_or_all_is_padded():
    def blocks(*tokens):
        return [(count, {LINEAR: BlockKernels(26, 4, None)}) for count in tokens]

    assert why_more_kernels(blocks(4, 16, 64)) == why_more_kernels(blocks(1, 2)) == why_more_kernels([]) == ""
    assert "at 64 tokens 26" in why_more_kernels(blocks(1, 4, 64)) and "fills" not in why_more_kernels(blocks(1, 4))
