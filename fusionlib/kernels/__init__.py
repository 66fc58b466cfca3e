"""The Triton kernels, how they are launched, and the rows that they can address."""
