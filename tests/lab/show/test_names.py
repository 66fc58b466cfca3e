"""Names from traces, short and whole."""

import pytest

from fusionlab.show.names import cut, short_name, us, wrapped

ADD = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul> >"
    "(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)"
)
COPY = (
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::"
    "{lambda()#3}::operator()() const>"
)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("aten::mul", "mul"),
        ("fusionlib::group_quant", "fusionlib::group_quant"),
        ("_fused_kernel", "_fused_kernel"),
        (ADD, "CUDAFunctor_add (vectorized_elementwise)"),
        (COPY, "direct_copy_kernel_cuda (unrolled_elementwise)"),
        ("void cutlass::device_kernel<cutlass::gemm::Tile<1> >(int)", "device_kernel"),
        ("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD"),
        ("## Call CompiledFxGraph ftvse7cxw5qssmqjjvyfvkk4likaeqthzx2njuws2lgrgqt22glu ##", "Call CompiledFxGraph"),
        ("<><>", "<><>"),
        ("", ""),
    ],
)
def test_short_names(name, short):
    assert short_name(name, 60) == short


def test_a_long_name_loses_its_middle():
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghijk", 10) == "abcdef…ijk"
    assert len(short_name("triton_per_fused_" + "x" * 200, 32)) == 32


def test_a_whole_name_is_escaped_and_bounded():
    assert wrapped("a<b>c") == "a&lt;b&gt;c"
    lines = wrapped("x" * 1000, width=10, lines=3).split("<br>")
    assert lines == ["x" * 10] * 3 + ["… 1000 characters in all"]
    assert wrapped("") == "(no name)"


@pytest.mark.parametrize(
    ("value", "text"), [(0.125, "0.12"), (9.5, "9.50"), (123.45, "123.5"), (-0.5, "-0.50"), (12345.6, "12346")]
)
def test_microseconds(value, text):
    assert us(value) == text
