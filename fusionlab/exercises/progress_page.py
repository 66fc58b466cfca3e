"""The reader's progress as one self-contained page: no script, no other file, no network."""

from __future__ import annotations

from html import escape
from pathlib import Path

from fusionlab.exercises.chapters import Standing, standings, summary
from fusionlab.exercises.progress import NEW, SOLVED, TRIED, read

#: The page's name beside the site's pages.
FILE = "progress.html"

_SIGNS = {SOLVED: "✓", TRIED: "…", NEW: "–"}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Your progress</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem; color: #1b1f24;
  background: #fff; }}
h2 {{ font-size: 1.1rem; margin: 1.6rem 0 0.3rem; }}
progress {{ width: 100%; height: 0.6rem; accent-color: #1a63b0; }}
ul {{ list-style: none; padding: 0; margin: 0.3rem 0; }}
li {{ overflow-wrap: anywhere; }}
.sign {{ display: inline-block; width: 1.5em; }}
.note {{ color: #57606a; }}
a {{ color: #1a63b0; }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #e6edf3; background: #0d1117; }}
  .note {{ color: #9da7b1; }}
  a {{ color: #79b8ff; }}
  progress {{ accent-color: #79b8ff; }}
}}
</style>
</head>
<body>
{back}<h1>Your progress</h1>
<p>{summary}</p>
{chapters}
<p class="note">As it was when this page was written, on this machine: nothing is sent anywhere. <code>fusionlib
exercises page</code> writes it again, as a new site does; <code>fusionlib exercises reset</code> forgets it all.</p>
</body>
</html>
"""


_EMPTY = (
    "Nothing is noted here yet. Exercises are solved in the notebooks, in JupyterLab; then <code>fusionlib exercises "
    "page</code>, in a terminal, writes what you solved to this page. If the site is not in build/site, name the page "
    "with <code>--output</code>."
)


def render(folder: Path) -> str:
    """The page of what is noted on this machine now; notebooks whose pages lie in `folder` are links."""
    now = standings(read())
    words = escape(summary(now)) if any(standing.touched for standing in now) else _EMPTY
    back = '<p><a href="index.html">All pages</a></p>\n' if (folder / "index.html").exists() else ""
    return _PAGE.format(back=back, summary=words, chapters="\n".join(_chapter(standing, folder) for standing in now))


def _chapter(standing: Standing, folder: Path) -> str:
    chapter, total = standing.chapter, len(standing.states)
    title, page = escape(chapter.title), f"{chapter.notebook}.html"
    if (folder / page).exists():
        title = f'<a href="{page}">{title}</a>'
    rows = "".join(
        f'<li><span class="sign" aria-hidden="true">{_SIGNS[state]}</span>{escape(name)}: {state}</li>\n'
        for name, state in standing.states.items()
    )
    said = f"{standing.solved} of {total} solved"
    bar = f'<progress max="{total}" value="{standing.solved}" aria-label="{said}">{said}</progress>'
    return f"<section>\n<h2>{title}</h2>\n{bar}\n<p>{said}</p>\n<ul>\n{rows}</ul>\n</section>"
