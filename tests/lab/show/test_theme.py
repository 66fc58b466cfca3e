"""Colours are legible and distinguishable, and each means one thing."""

import itertools

import pytest

from fusionlab.observe.bench.variants import VARIANTS
from fusionlab.observe.evidence import reference
from fusionlab.observe.trace_sources import CPU_LABELS, LABELS
from fusionlab.show.line_styles import IMPLEMENTATIONS, implementation, styles
from fusionlab.show.theme import GROUND, INK, PALETTE, shades, template
from tests.lab.show.colours import contrast, distance

PAGES = ["#ffffff", "#14171a"]  # of the site, light and dark


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", list(PALETTE))
def test_every_colour_stands_out_on_both_pages(name, page):
    assert contrast(PALETTE[name], page) >= 3


@pytest.mark.parametrize("pair", list(itertools.combinations(PALETTE, 2)), ids="-".join)
def test_no_two_colours_are_nearly_the_same(pair):
    assert distance(*(PALETTE[name] for name in pair)) >= 10


def test_text_is_legible_on_the_ground_of_figures():
    layout = template().layout
    assert (layout.paper_bgcolor, layout.font.color) == (GROUND, INK)
    assert contrast(INK, GROUND) >= 4.5


@pytest.mark.parametrize("name", list(PALETTE))
def test_neighbours_in_two_shades_are_seen_and_their_names_are_legible(name):
    dark, light = shades(name)
    assert contrast(dark, light) >= 1.45
    for shade, page in itertools.product((dark, light), PAGES):
        assert contrast(shade, page) >= 2.95 and contrast("#000000", shade) >= 4.5


def test_the_contrast_of_this_test_is_the_one_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert distance("#000000", "#ffffff") == pytest.approx(100, abs=0.01)


KNOWN = [
    *LABELS.items(),
    *CPU_LABELS.items(),
    *((name, variant.label) for name, variant in VARIANTS.items() if name in IMPLEMENTATIONS),
    *reference("h200_survey").tables["times"].labels.items(),
    ("fla", "flash-linear-attention's norm, then quantisation"),
]


@pytest.mark.parametrize(("key", "label"), KNOWN)
def test_an_implementation_is_known_under_each_of_its_names(key, label):
    assert implementation(label) == key


def test_an_implementation_looks_the_same_whatever_it_is_compared_with():
    few, many = (["two kernels", "one kernel"], ["eager", "AITER's Triton kernel", "two kernels", "one kernel"])
    assert [styles(few)[name] for name in few] == [styles(many)[name] for name in few]
    assert len({style.colour for style in IMPLEMENTATIONS.values()}) == len(IMPLEMENTATIONS)


def test_what_is_unknown_takes_what_no_other_has():
    found = styles(["one kernel", "mine", "yours"])
    assert len({style.colour for style in found.values()}) == 3
