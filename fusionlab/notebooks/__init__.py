"""Finding, executing and publishing the notebooks of this repository.

`catalogue` finds them, `parameters` checks what is passed to them, `runner` executes them, `site` renders the results
to pages that need no network.
"""
