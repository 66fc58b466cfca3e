"""Match -> guard -> replace -> report: `FusionPass` and what it says about a compile."""

from fusionlib.rewrite.chain import Chain
from fusionlib.rewrite.demand import FusionError
from fusionlib.rewrite.fusion_pass import FusionPass
from fusionlib.rewrite.report import CompileRecord, Report, Site

__all__ = ["Chain", "CompileRecord", "FusionError", "FusionPass", "Report", "Site"]
