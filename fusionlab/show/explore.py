"""A figure with controls: the static form first, live controls only in an interactive session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from fusionlab.show.controls import without_controls
from fusionlab.show.drawing import Drawing
from fusionlab.show.figure import Shown

if TYPE_CHECKING:
    from ipywidgets import Widget

STYLE = {"description_width": "initial"}
#: In JupyterLab the controls replace the words; without controls the words replace JupyterLab's error message.
STYLE_OF_WORDS = """<style>
.jp-OutputArea:has(.widget-box) .fusionlib-still,
.jp-OutputArea:has(.fusionlib-still) .jp-OutputArea-output.jupyter-widgets:not(:has(*)) { display: none }
</style>"""


@dataclass(frozen=True)
class Span:
    """A number between `low` and `high` in steps of `step`, initially `value`; integers give integers."""

    low: float
    high: float
    value: float
    step: float = 1

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high or self.step <= 0:
            raise ValueError(f"{self}: need low <= value <= high and step > 0")

    def widget(self, name: str) -> Widget:
        """The slider."""
        import ipywidgets

        whole = all(isinstance(number, int) for number in (self.low, self.high, self.value, self.step))
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        return kind(
            value=self.value, min=self.low, max=self.high, step=self.step, description=name, style=STYLE,
            continuous_update=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One of several values, shown by label if a mapping is given; initially `value`."""

    options: Mapping[str, Any] | Sequence[Any]
    value: Any

    def __post_init__(self) -> None:
        values = list(self.options.values() if isinstance(self.options, Mapping) else self.options)
        if self.value not in values:
            raise ValueError(f"value={self.value!r} is none of {values!r}")

    def widget(self, name: str) -> Widget:
        """The drop-down list."""
        import ipywidgets

        pairs = self.options.items() if isinstance(self.options, Mapping) else ((str(o), o) for o in self.options)
        return ipywidgets.Dropdown(options=list(pairs), value=self.value, description=name, style=STYLE)


@dataclass(frozen=True)
class Entry:
    """A line of text, for a search."""

    value: str = ""
    placeholder: str = ""

    def widget(self, name: str) -> Widget:
        """The text field, which updates while typing."""
        import ipywidgets

        return ipywidgets.Text(value=self.value, placeholder=self.placeholder, description=name, style=STYLE)


def explore(draw: Callable[..., Drawing], *, interactive: bool, **controls: Span | Choice | Entry) -> None:
    """Show `draw(**values)` with the controls' initial values and, if `interactive`, controls above that redraw it.

    The notebook stores the figure either way, so readers without a kernel see it.

    Args:
        draw: makes the drawing; called with one keyword argument for every control.
        interactive: whether to add the controls, which need ipywidgets and a running kernel; otherwise a line of text
            says which there would be.
        **controls: by argument name, whose underscores become spaces in the label. A slider inside the figure with the
            same name is left out if the control is present.
    """
    values = {name: control.value for name, control in controls.items()}
    names = ", ".join(name.replace("_", " ") for name in controls)
    if interactive:
        _Live(draw, controls, names)
        return
    from IPython.display import publish_display_data

    Shown().update(draw(**values))
    words = f"Run in JupyterLab with `interactive = True`, this figure has live controls: {names}."
    publish_display_data(data={"text/markdown": f"*{words}*", "text/plain": words.replace("`", "")})


class _Live:
    """A figure below the controls that redraw it."""

    def __init__(self, draw: Callable[..., Drawing], controls: Mapping[str, Span | Choice | Entry], names: str) -> None:
        import ipywidgets

        self._draw, self._shown = draw, Shown()
        self._widgets = {name: control.widget(name.replace("_", " ")) for name, control in controls.items()}
        self._messages = ipywidgets.Output()
        _publish_controls(ipywidgets.VBox([*self._widgets.values(), self._messages]), names)
        self._update()
        for widget in self._widgets.values():
            widget.observe(self._moved, names="value")

    def _moved(self, _change: Any) -> None:
        self._messages.clear_output()
        with self._messages:  # an exception in a widget's callback is lost unless it is shown
            self._update()

    def _update(self) -> None:
        drawing = self._draw(**{name: _read(widget.value) for name, widget in self._widgets.items()})
        # Two sliders for the same value would contradict each other: the live one stays.
        sliders = [slider for slider in drawing.fig.layout.sliders if slider.name not in self._widgets]
        if len(sliders) < len(drawing.fig.layout.sliders):
            drawing = replace(drawing, fig=without_controls(drawing.fig))
        self._shown.update(drawing)


def _read(value: Any) -> Any:
    """A control's value; for a number, without the slider's floating-point noise."""
    return round(value, 9) if isinstance(value, float) else value


def _publish_controls(box: Widget, names: str) -> None:
    """Show `box`, and words for readers who cannot: a saved notebook has no widgets, only a note that some existed."""
    from IPython.display import publish_display_data

    words = f"This figure has live controls while its kernel runs: {names}."
    publish_display_data(data={"text/html": f"<p class='fusionlib-still'>{escape(words)}</p>{STYLE_OF_WORDS}",
                               "text/plain": words})  # fmt: skip
    publish_display_data(data=box._repr_mimebundle_() | {"text/plain": ""})
