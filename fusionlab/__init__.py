"""What the walkthrough needs besides the library: traces, figures, exercises, benchmarks, the runner and the site.

It builds on `fusionlib`, which does not import it. Its commands (`bench`, `record`, `asm`, `notebooks`, ...) are added
to the `fusionlib` command line through entry points; `pip install '.[notebooks]'` installs what they import.
"""
