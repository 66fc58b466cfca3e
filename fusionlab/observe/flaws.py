"""What could not be read in a trace file: counted by kind, with the first of each kind named.

Profilers write JSON by hand, and how they write a program's names is not always valid JSON. One such event must neither
lose the other hundred thousand nor disappear silently. `mended` repairs unambiguous faults; anything else is skipped
and reported as a `Flaw`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from fusionlab.observe.events import readable

_SHOWN = 60  # characters of a name in a message


@dataclass(frozen=True)
class Flaw:
    """One kind of fault in a trace file; `str()` makes it a sentence for the reader of a page.

    Args:
        what: what is wrong and what was done about it.
        count: affected events; 0 for a fault of the file itself.
        first: the first of these events, or the place in the file.
        category: the events' category, empty if unknown.
        lost: whether something is missing from the trace because of it.
    """

    what: str
    count: int
    first: str
    category: str = ""
    lost: bool = True

    def __str__(self) -> str:
        if not self.count:
            return ", ".join(filter(None, (self.what, self.first)))
        events = f"{self.count} {self.category} event".replace("  ", " ") + "s" * (self.count > 1)
        return f"{events} {self.what}; {'the first' if self.count > 1 else 'it'} is {self.first}"


class Flaws:
    """Collects flaws while a file is read; `index` is the current event's position in `traceEvents`."""

    def __init__(self) -> None:
        self.index = 0
        self._found: dict[tuple[str, str, bool], Flaw] = {}

    def add(self, what: str, name: object = "", category: object = "", *, count: int = 1, lost: bool = True) -> None:
        """Count the current event under `what`; `name` and `category` are the event's, if known."""
        word = category if isinstance(category, str) and re.fullmatch(r"\w{1,40}", category) else ""
        known = self._found.get((what, word, lost))
        first = known.first if known else self.place(name)
        self._found[what, word, lost] = Flaw(what, count + (known.count if known else 0), first, word, lost)

    def note(self, what: str, where: str = "", name: object = "", *, lost: bool = True) -> None:
        """Add a flaw of the file itself; `where` relates it to the current event, as in "behind"."""
        self._found[what, "", lost] = Flaw(what, 0, f"{where} {self.place(name)}" if where else "", "", lost)

    def place(self, name: object) -> str:
        """A description of the current event."""
        text = readable(" ".join(str(name).split()))
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        return f"event {self.index} of traceEvents" + (f" ({shown})" if shown else "")

    def listed(self) -> tuple[Flaw, ...]:
        """All flaws: those of the file itself first, then the most frequent."""
        return tuple(sorted(self._found.values(), key=lambda flaw: (flaw.count > 0, -flaw.count, flaw.what)))


#: Quotes inside a name (pytorch/kineto#1459): Kineto and the profiler before it put the next key on the same line.
_NAME = re.compile(r'("name"\s*:\s*")(.*?)("\s*,\s*"(?:ph|cat|pid|tid|ts|dur|args)"\s*:)', re.S)
_QUOTE = re.compile(r'(?<!\\)"')
#: What C++ prints for a bandwidth computed with a zero time (pytorch/kineto#105).
_NO_NUMBER = re.compile(r"(?<=[:\[,])(\s*)-?(?:nan|inf)\b(?=\s*[,\]}])")
#: An unescaped Windows path (pytorch/kineto#336).
_BACKSLASH = re.compile(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')


def mended(text: str) -> Any:
    """The event that the writer meant by `text`, which is not valid JSON; None if that is uncertain."""
    text = _NO_NUMBER.sub(r"\1null", _BACKSLASH.sub(r"\\\\", text))
    text = _NAME.sub(lambda match: match[1] + _QUOTE.sub(r"\"", match[2]) + match[3], text)
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def named(text: str) -> tuple[str, str, bool]:
    """What the text of an invalid event reveals: name, category, and whether it has a time.

    Process names and arrows from launch to kernel have none; dropping them loses nothing.
    """
    name = re.search(r'"name"\s*:\s*"(.{0,80}?)(?:"\s*,\s*"\w+"\s*:|$)', text, re.S)
    category = re.search(r'"cat"\s*:\s*"(\w+)"', text)
    timed = not re.search(r'"ph"\s*:\s*"[^X]"', text)
    return name[1] if name else "", category[1] if category else "", timed
