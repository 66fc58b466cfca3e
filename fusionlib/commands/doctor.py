"""`fusionlib doctor`: compare what is installed with what is expected.

It also runs standalone: `python fusionlib/commands/doctor.py`.

Every Python, even an old one, must be able to parse this file to report that it is too old: no f-strings, no
annotations, and no import from the package before the version check. The checks themselves are in `diagnosis`.
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036, an older Python stops here
    print(
        "Python " + ".".join(map(str, sys.version_info[:3])) + " is too old: fusionlib needs Python 3.11 or newer. "
        "Name another one, for example `make PYTHON=python3.12`, or run this file with it."
    )
    sys.exit(1)
if __name__ == "__main__":  # import from the package around this file, installed or not, not from its folder
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.dirname(here))] + [
        folder for folder in sys.path if os.path.abspath(folder) != here
    ]

from fusionlib.commands.diagnosis import can_run, diagnose, render, this_machine


def register(subparsers):
    """Add the `doctor` command to the parser."""
    parser = subparsers.add_parser("doctor", help="compare what is installed with what is expected")
    parser.set_defaults(run=run)


def run(args=None):
    """Print the findings; 0 if the walkthrough can run, 1 otherwise."""
    findings = diagnose(this_machine())
    print(render(findings))
    return 0 if can_run(findings) else 1


if __name__ == "__main__":
    sys.exit(run())
