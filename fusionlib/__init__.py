"""fusionlib: RMSNormGated -> reshape -> FP8 group quantisation as one kernel, explained and proved.

The names below are the public face. Importing this package imports torch and nothing of Jupyter or plotly; Triton is
imported at the first launch.
"""

from fusionlib.spec import GatedNorm, GroupQuant, SpecError

__all__ = ["GatedNorm", "GroupQuant", "SpecError"]
