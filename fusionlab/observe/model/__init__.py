"""A whole model of transformers, decoding and reading prompts with and without the pass: `fusionlib bench --model`.

whole_model     the model in its true sizes, as many layers as fit, with random weights and its caches
recurrence_ops  its recurrences as opaque ops, so that it is one graph
channel_order   the same model with its sums in another order: what is noise
accuracy        distances between the logits of two runs
model_run       one run: compile, compare, trace, time
model_command   the command
recorded_model  a run's document, as a notebook reads it
model_text      the same in words
"""
