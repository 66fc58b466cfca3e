"""A decode step of Qwen3-Next-like blocks of true size: what the fusions are worth to a model.

decode_sizes   the sizes of a block, and the bytes of its weights and states
sites          the values that are quantised, each as a model writes it
recurrence     the gated delta rule's step: flash-linear-attention's kernel, or plain PyTorch
blocks         the two blocks, linear attention and full attention, each with an MLP
decoder        all layers with random weights and states; the step itself
step_variants  the ways of compiling a block: which quantisation, which fusions
site_codes     whether the codes of a site are eager's, on the same inputs
block_traces   profiler traces of one block of each kind: kernels, and what removing the quantisation would save
saved_parts    what a step saved, in parts, from the traces of opaque and fused blocks
step_run       everything in one run, interleaved; step_text: the results as text
recorded_step  a recorded run as a notebook reads it; recorded_text: the same in words
"""
