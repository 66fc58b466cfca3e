"""What the walkthrough needs beside the library: traces, figures, exercises, benchmarks, the runner and the site.

It stands on `fusionlib`, which imports nothing of it. Its commands (`bench`, `record`, `asm`, `notebooks`, ...) join
the `fusionlib` command line through entry points; `pip install '.[notebooks]'` installs what they import.
"""
