"""The benchmark: our kernel beside what a user has today and beside the light, in one run.

cases      what is measured: shapes, tokens, gates, contexts
variants   the ways of computing it, a to e, and those that are not installed
light      f: a kernel that moves the same bytes and computes nothing
check      does a variant compute the right thing
timer      how long a call takes on a GPU; the only part that needs one
run        check all, then time all, interleaved
sweep      launch configurations, for the heuristic's thresholds and the light's tuning
dependent  programmatic dependent launch in a chain
results    what is written, with its provenance; targets: what of it meets the goals
report     the same as text
"""
