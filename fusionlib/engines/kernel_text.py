"""What a Triton kernel of straight-line code stores where, as expressions of its parameters.

Kernels are copied between projects and changed under the same name, and a signature does not show a floor. Here a
reader sees the arithmetic itself, whatever its variables are called.
"""

from __future__ import annotations

import ast
import textwrap
from typing import Any


def stored(kernel: Any) -> dict[str, str]:
    """{where: what} of every `tl.store` of a kernel, with each variable replaced by its expression.

    Empty if the kernel is more than assignments to names and stores: a branch, a loop, a mask that is stored with.
    """
    (function,) = ast.parse(textwrap.dedent(kernel.src)).body
    if not isinstance(function, ast.FunctionDef):
        return {}
    known: dict[str, ast.expr] = {}
    found: dict[str, str] = {}
    for statement in function.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and _is_plain(statement):
            known[statement.targets[0].id] = _Inlined(known).visit(statement.value)
        elif (store := _store(statement)) is not None:
            where, what = (ast.unparse(_Inlined(known).visit(argument)) for argument in store)
            found[where] = what
        elif not _is_docstring(statement):
            return {}
    return found


def expression(text: str) -> str:
    """An expression as `stored` spells it."""
    return ast.unparse(ast.parse(text, mode="eval"))


def _is_plain(statement: ast.Assign) -> bool:
    return len(statement.targets) == 1


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _store(statement: ast.stmt) -> list[ast.expr] | None:
    """The pointer and the value of a plain `tl.store`."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "tl.store" or call.keywords or len(call.args) != 2:
        return None
    return call.args


class _Inlined(ast.NodeTransformer):
    """Replaces names by their expressions, and `axis=` of a program's number by its position."""

    def __init__(self, known: dict[str, ast.expr]) -> None:
        self._known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._known.get(node.id, node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if ast.unparse(node.func) == "tl.program_id" and not node.args:
            return ast.Call(node.func, [keyword.value for keyword in node.keywords], [])
        return node
