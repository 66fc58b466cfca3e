"""The Triton kernels, how they are launched, and the row layouts they can address."""
