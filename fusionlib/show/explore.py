"""A figure with controls: the static form first, live only where there is somebody to move them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusionlib.show.drawing import Drawing
from fusionlib.show.figure import Shown

if TYPE_CHECKING:
    from ipywidgets import Widget

STYLE = {"description_width": "initial"}


@dataclass(frozen=True)
class Span:
    """A number between `low` and `high` in steps of `step`, at first `value`; whole numbers give whole numbers."""

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
    """One of several values, by their labels if a mapping is given; at first `value`."""

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
        """The text field, which answers while one types."""
        import ipywidgets

        return ipywidgets.Text(value=self.value, placeholder=self.placeholder, description=name, style=STYLE)


def explore(draw: Callable[..., Drawing], *, interactive: bool, **controls: Span | Choice | Entry) -> None:
    """Show `draw(**values)` with the controls' first values and, if `interactive`, controls that redraw it in place.

    What is stored in the notebook is the static figure either way, so it is there for readers without a kernel.

    Args:
        draw: makes the drawing; called with one keyword argument for every control.
        interactive: whether to add the controls, which need ipywidgets and a running kernel; otherwise a line of words
            says which there would be.
        **controls: by the name of the argument, whose underscores become spaces in the label.
    """
    shown = Shown()
    shown.update(draw(**{name: control.value for name, control in controls.items()}))
    labels = {name: name.replace("_", " ") for name in controls}
    from IPython.display import display, publish_display_data

    if not interactive:
        words = f"In JupyterLab this figure has live controls: {', '.join(labels.values())}."
        publish_display_data(data={"text/markdown": f"*{words}*", "text/plain": words})
        return
    import ipywidgets

    widgets = {name: control.widget(labels[name]) for name, control in controls.items()}
    messages = ipywidgets.Output()

    def redraw(_change: Any) -> None:
        messages.clear_output()
        with messages:  # an exception in a widget's callback is lost unless something shows it
            shown.update(draw(**{name: widget.value for name, widget in widgets.items()}))

    for widget in widgets.values():
        widget.observe(redraw, names="value")
    display(ipywidgets.VBox([*widgets.values(), messages]))
