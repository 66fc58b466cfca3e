"""The benchmark: our kernel beside what a user has today and beside the light, in one run.

measured_producers  what computes the value: its inputs, reference, fused call, bytes, light
cases               what is measured: shapes, tokens, layouts, contexts
variants            the ways of computing it, a to e, and those that are not installed
light               f: a kernel that moves the same bytes and computes nothing
correctness         whether a variant computes the right thing
timer               how long a call takes on a GPU; the only part that needs one
context             the chain around a call: the kernel before it, the GEMM after it
run                 check all, then time all, interleaved
compilations        the fastest of several compilations by Inductor
sweep               launch configurations, for the heuristic's thresholds and the light's tuning
dependent           programmatic dependent launch in a chain
results             what is written, with its provenance; targets: which goals it meets
text                the results as text
"""
