"""What must not be published: names of hosts and users, and a machine's paths and addresses."""

from __future__ import annotations

import contextlib
import getpass
import re
import shlex
import socket
from collections.abc import Iterable, Sequence

from fusionlab.observe.clean import ADDRESS, PATH, USERS

#: Common names of hosts and users that also occur in measurements; such a word identifies nobody.
_NO_NAMES = frozenset(
    [
        "root",
        "user",
        "localhost",
        "ubuntu",
        "debian",
        "runner",
        "admin",
        "cpu",
        "gpu",
        "python",
        "linux",
        "nvidia",
        "amd",
        "cuda",
        "rocm",
        "torch",
        "triton",
        "fusionlib",
        "kernel",
        "h100",
        "h200",
        "b200",
    ]
)


def command_text(argv: Sequence[str]) -> str:
    """A command line as text, absolute paths cut to their last part: they name the machine, not the measurement."""
    return shlex.join(re.sub(PATH, lambda found: re.split(r"[\\/]", found.group())[-1], word) for word in argv)


def leaks(text: str, secrets: Iterable[str] | None = None) -> list[str]:
    """What in `text` identifies a machine or a person: paths, addresses, users seen in paths, and each of `secrets`.

    `secrets` default to this host's and this user's names. Web addresses do not count as paths.
    """
    plain = re.sub(r"https://[^\s\"'<>]+", "", text)
    found = [*re.findall(PATH, plain), *re.findall(ADDRESS, plain), *re.findall(USERS, plain)]
    for word in own_names() if secrets is None else secrets:
        found += re.findall(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", plain, re.I)
    return sorted(set(found))


def own_names() -> list[str]:
    """This host's and user's names, except words so common that they identify nobody."""
    names = {socket.gethostname(), socket.gethostname().split(".")[0]}
    with contextlib.suppress(KeyError, OSError):  # no such user: no name to hide
        names.add(getpass.getuser())
    return sorted(name for name in names if len(name) > 2 and name.lower() not in _NO_NAMES)
