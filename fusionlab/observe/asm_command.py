"""`fusionlib asm`: the fused kernel compiled for GPUs that are not present, as listings, a census or side by side.

Examples::

    fusionlib asm                                              the census of all four targets
    fusionlib asm --target sm_90 --stage ptx
    fusionlib asm --norm mamba2 --norm-size 1024 --compare sm_90 gfx950
"""

from __future__ import annotations

import argparse

TARGETS = ("sm_90", "sm_100", "gfx942", "gfx950")
NORMS = ("qwen3_next", "vllm", "kimi_linear", "mamba2")
QUANTS = ("vllm", "vllm_native", "aiter", "deepgemm", "deepgemm_blackwell", "torchao")
STAGES = ("ttir", "ttgir", "llir", "ptx", "amdgcn", "census")
DTYPES = ("bf16", "fp16", "fp32")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the `asm` parser to `subparsers`; it sets `run`, a function (namespace) -> exit code."""
    parser = subparsers.add_parser(
        "asm",
        help="compile the fused kernel offline and show its stages or its instructions",
        description="Compile the fused kernel for GPUs that need not be here and show what it became.",
    )
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="default: all of them")
    parser.add_argument("--norm", choices=NORMS, default="qwen3_next", help="default: %(default)s")
    parser.add_argument("--norm-size", type=int, default=128, help="elements of one mean; default: %(default)s")
    parser.add_argument("--quant", choices=QUANTS, default="vllm", help="default: %(default)s")
    parser.add_argument("--group-size", type=int, default=128, help="elements of one scale; default: %(default)s")
    parser.add_argument("--hidden", type=int, default=4096, help="elements of a row; default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the inputs; default: %(default)s")
    parser.add_argument("--stage", choices=STAGES, default="census", help="what to show; default: %(default)s")
    parser.add_argument(
        "--compare",
        nargs=2,
        choices=TARGETS,
        metavar="TARGET",
        help="each source line beside the instructions it became on two targets, in place of a stage",
    )
    parser.set_defaults(run=_run)


def _run(namespace: argparse.Namespace) -> int:
    from fusionlab.observe import asm

    return asm.run(namespace)
