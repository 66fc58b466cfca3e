"""Text is legible in both schemes."""

from __future__ import annotations

import itertools
import re

import pytest

from fusionlab.notebooks import site, stylesheet
from fusionlab.notebooks.stylesheet import CODE_STYLES, COLOURS, CONTRAST, INKS, contrast, legible


def test_contrast_is_that_of_wcag():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)  # the known grey that just fails
    assert contrast("#123456", "#123456") == 1


@pytest.mark.parametrize("scheme", CODE_STYLES)
@pytest.mark.parametrize("ground", ["page", "surface"])
@pytest.mark.parametrize("ink", INKS)
def test_every_ink_can_be_read_on_every_ground(ink, ground, scheme):
    index = list(CODE_STYLES).index(scheme)
    assert contrast(COLOURS[ink][index], COLOURS[ground][index]) >= CONTRAST


def test_a_colour_moves_by_as_little_as_is_needed():
    assert legible("#3d7b7b", "#ffffff") == "#3d7b7b"
    moved = legible("#999999", "#ffffff")
    assert CONTRAST <= contrast(moved, "#ffffff") < CONTRAST + 0.2
    assert contrast(legible("#444444", "#14171a"), "#14171a") >= CONTRAST
    with pytest.raises(ValueError, match="no colour has a contrast of 22 with #ffffff"):
        legible("#000000", "#ffffff", at_least=22)


def test_every_colour_of_code_can_be_read_in_its_scheme():
    css = stylesheet.stylesheet(site._folder("assets"))
    light, by_system, by_choice = css.split("@media screen", 2)
    for rules, index in ((light, 0), (by_system, 1), (by_choice.partition("\n}")[0], 1)):
        colours = re.findall(r"\.highlight[^{}]*\{[^}]*?(?<![-\w])color: (#[0-9a-f]+)", rules)
        assert len(colours) > 30
        assert min(contrast(colour, COLOURS["surface"][index]) for colour in colours) >= CONTRAST


def test_the_dark_scheme_is_the_same_by_system_and_by_choice_and_never_on_paper():
    css = stylesheet.stylesheet(site._folder("assets"))
    by_system, by_choice = re.findall(r":where\((?!:root\))[^{]*\{(.*?)\}", css)
    assert by_system == by_choice
    before = css.partition("color-scheme: dark")[0]
    assert before.rindex("@media screen") > before.rindex("color-scheme: light")


def test_every_colour_that_the_sheets_use_exists():
    css = stylesheet.stylesheet(site._folder("assets"))
    used, made = set(re.findall(r"var\(--([\w-]+)", css)), set(re.findall(r"--([\w-]+):", css))
    assert used - made <= {"shrink"}, "set by figures.js"
    assert not re.search(r"(?<!['\"&\w])#[0-9a-fA-F]{3,6}\b", "".join(itertools.chain(_own_sheets())))


def _own_sheets():
    return ((site._folder("assets") / name).read_text() for name in stylesheet.SHEETS)
