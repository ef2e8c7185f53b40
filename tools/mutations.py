"""The mutants of a module: its syntax tree with one operator, constant, condition or statement changed."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}


@dataclass(frozen=True)
class Mutant:
    """One change of a module: where, what, and the tree that has it."""

    line: int
    what: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module's source.

    >>> [m.what for m in mutants("def f(a):\\n    return a < 1")]
    ['return None', '< becomes <=', '1 becomes 2']
    >>> list(mutants("def f():\\n    return None"))
    []
    """
    tree = ast.parse(source)
    for number, node in enumerate(_nodes(tree)):
        for choice, (what, _) in enumerate(_changes(node)):
            made = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(_nodes(made)) if i == number)
            changed = _changes(target)[choice][1]
            yield Mutant(_line(node), what, _Replace(target, changed).visit(made))


def _line(node: ast.AST) -> int:
    return node.target.lineno if isinstance(node, ast.comprehension) else getattr(node, "lineno", 0)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes that may be changed, in order of the text."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            is_skipped = isinstance(child, ast.AnnAssign) and ast.unparse(child.annotation) == "TypeAlias"
            is_skipped |= isinstance(child, ast.Assign) and isinstance(node, ast.Module)
            is_skipped |= isinstance(child, ast.keyword) and child.arg == "strict"
            if isinstance(child, ast.AST) and not is_skipped and not isinstance(child, ast.Assert | ast.JoinedStr):
                yield from _nodes(child)


def _changes(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """Return what may become of a node: in words, and as a tree."""
    made: list[tuple[str, ast.AST]] = []
    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                if type(op) in COMPARE:
                    ops = [*node.ops[:i], COMPARE[type(op)](), *node.ops[i + 1 :]]
                    made.append((f"{_sign(op)} becomes {_sign(ops[i])}", ast.Compare(node.left, ops, node.comparators)))
        case ast.BoolOp():
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            made.append((f"{_sign(node.op)} becomes {_sign(other)}", ast.BoolOp(other, node.values)))
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            made.append((f"dropped: {'not' if isinstance(node.op, ast.Not) else 'minus'}", node.operand))
        case ast.BinOp() if type(node.op) in BINARY:
            binary = BINARY[type(node.op)]()
            made.append((f"{_sign(node.op)} becomes {_sign(binary)}", ast.BinOp(node.left, binary, node.right)))
        case ast.Constant(value=bool(value)):
            made.append((f"{value} becomes {not value}", ast.Constant(not value)))
        case ast.Constant(value=int(value)):
            made.append((f"{value} becomes {value + 1}", ast.Constant(value + 1)))
        case ast.Call(func=ast.Name(id=name)) if name in CALLS:
            call = ast.Call(ast.Name(CALLS[name], ast.Load()), node.args, [] if name == "sorted" else node.keywords)
            made.append((f"{name} becomes {CALLS[name]}", call))
        case ast.Return(value=ast.Constant(value=None)):
            pass  # it is that already
        case ast.Return(value=ast.AST()):
            made.append(("return None", ast.Return(ast.Constant(None))))
        case ast.Expr(value=ast.Constant()):
            pass  # a docstring
        case ast.Expr() | ast.Raise() | ast.Continue() | ast.Assign() | ast.AugAssign():
            made.append((f"dropped: {_short(node)}", ast.Pass()))
        case ast.If() | ast.IfExp() | ast.While():
            made.append((f"if not: {_short(node.test)}", _negated(node)))
        case ast.comprehension(ifs=[_, *_]):
            everything = ast.comprehension(node.target, node.iter, [], node.is_async)
            made.append(("dropped: the comprehension's if", everything))
    return made


def _negated(node: ast.If | ast.IfExp | ast.While) -> ast.AST:
    changed = copy.copy(node)
    changed.test = ast.UnaryOp(ast.Not(), node.test)
    return changed


def _sign(op: ast.AST) -> str:
    if isinstance(op, ast.cmpop):
        return ast.unparse(ast.Compare(ast.Name("a"), [op], [ast.Name("a")]))[1:-1].strip()
    if isinstance(op, ast.operator):
        return ast.unparse(ast.BinOp(ast.Name("a"), op, ast.Name("a")))[1:-1].strip()
    return type(op).__name__.lower()


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "…"


class _Replace(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        """Replace the node, or look below it."""
        if node is self.old:
            return ast.copy_location(self.new, node)
        return self.generic_visit(node)
