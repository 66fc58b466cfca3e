"""Which modules of a model a caller means: patterns of names, and the names that are kept unless one asks for them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from fusionlib.module_paths import numberless

#: Layers that models keep in 16 bits, by the end of their names: routers and gates of experts, what maps to tokens or
#: classes, what maps from them, norms, and the projections to one number per head (decay, step, beta).
#: Source: `modules_to_not_convert` of Qwen3-Next-80B-A3B-Instruct-FP8, and the names in transformers 5.23.
KEPT = (
    "gate", "*router*", "shared_expert_gate", "lm_head", "*embed*", "*norm*", "score", "classifier",
    "in_proj_a", "in_proj_b", "in_proj_ba", "b_proj", "dt_proj",
)  # fmt: skip


def as_patterns(given: str | Iterable[str], what: str) -> tuple[str, ...]:
    """One pattern or several. Raises TypeError for anything else."""
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise TypeError(f"{what}={given!r}: {pattern!r} must be a pattern of names, such as '*.mlp.down_proj'")
    return patterns


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is a name's, or that of its end from a dot on: `out_proj` is every `*.out_proj`."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first of `patterns` that matches."""
    return next((pattern for pattern in patterns if matches(name, pattern)), None)


def is_asked_for(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of `patterns` that matches has the last part of `name` as it is written, no wildcard in it."""
    last = name.rpartition(".")[2]
    return any(pattern.rpartition(".")[2] == last and matches(name, pattern) for pattern in patterns)


def check_patterns(patterns: Sequence[str], names: Sequence[str], what: str) -> None:
    """Raise ValueError if a pattern matches none of `names`; the message has the nearest ones."""
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = nearest(pattern, names)
            raise ValueError(
                f"{what}={pattern!r} matches no linear layer of the model; "
                + (f"the nearest names are {', '.join(near)}" if near else "it has none")
            )


def nearest(pattern: str, names: Iterable[str], most: int = 4) -> list[str]:
    """Names like `pattern`, layers of the same place once: by their ends, of as many parts as the pattern has."""
    parts = pattern.count(".") + 1
    ends = list(dict.fromkeys(".".join(numberless(name).split(".")[-parts:]) for name in names))
    close = difflib.get_close_matches(pattern, ends, most, cutoff=0.4)
    return close or ends[:most]
