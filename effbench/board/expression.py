"""A small language that chooses rows of a table: comparisons joined by and, or, not. Its text is parsed and never run."""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effbench.plugin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

LONGEST = 1000
"""Characters of an expression."""
DEEPEST = 20
"""Levels of and, or, not and parentheses within each other."""
GRAMMAR = (
    "comparisons (== != < <= > >=, in [..]), and, or, not, parentheses, numbers, True, False, quoted text, names as lora.rank"
)
Value = bool | float | str | None
"""Of a cell of the table or a constant; None is missing."""
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Expression:
    """A condition on the columns of a table."""

    text: str
    tree: ast.expr
    """Of the nodes that `parse` allows."""

    @property
    def names(self) -> frozenset[str]:
        """The columns that it is about."""
        return frozenset(_names(self.tree))

    def parts(self) -> "list[Expression]":
        """What its top-level `and` joins."""
        if not (isinstance(self.tree, ast.BoolOp) and isinstance(self.tree.op, ast.And)):
            return [self]
        return [part for tree in self.tree.values for part in Expression(ast.unparse(tree), tree).parts()]

    def mask(self, frame: "pd.DataFrame") -> "pd.Series[bool]":
        """Where it holds. A comparison with a missing value is false, whichever it is, and so is one with a missing column.

        InputError where a column's values are all of another kind than what they are compared with, as numbers and text are.
        """
        import pandas as pd

        names = sorted(self.names)
        columns = {name: [_value(x) for x in frame[name]] if name in frame else [None] * len(frame) for name in names}
        self._check_kinds({name: {kind for value in found if (kind := _kind(value))} for name, found in columns.items()})
        # Few of a table's rows differ in the few columns of an expression.
        rows = list(zip(*columns.values(), strict=True)) if names else [()] * len(frame)
        known = {row: _holds(self.tree, dict(zip(names, row, strict=True))) for row in dict.fromkeys(rows)}
        return pd.Series([known[row] for row in rows], index=frame.index, dtype=bool)

    def _check_kinds(self, kinds: Mapping[str, set[str]]) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Compare):
                sides = [side for operand in (node.left, *node.comparators) for side in _elements(operand)]
                given = {kind for side in sides if isinstance(side, ast.Constant) and (kind := _kind(_value(side.value)))}
                for name in (name for side in sides for name in _names(side)):
                    if given and kinds[name] and not given & kinds[name]:
                        what, other = " or ".join(sorted(kinds[name])), " or ".join(sorted(given))
                        raise InputError(f"filter {self.text!r}: {name} is {what}, and {other} is what it is compared with")


def parse(text: str) -> Expression:
    """An expression; InputError in one line that says what is wrong, where, and what is allowed."""
    if len(text) > LONGEST:
        raise InputError(f"a filter has at most {LONGEST} characters, not {len(text)}")
    text = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in quoted text: they stay as they are written
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise _wrong(text, _hint(text), max((error.offset or 1) - 1, 0)) from None
    except (ValueError, MemoryError, RecursionError):  # null characters; what is nested too deeply for the parser
        raise _wrong(text, "it cannot be read", 0) from None
    return Expression(text, _condition(text, tree, DEEPEST))


def _condition(text: str, node: ast.expr, levels: int) -> ast.expr:
    """The tree, cleaned: signs folded into numbers, dotted names joined to one; InputError at the first node not allowed."""
    if not levels:
        raise _wrong(text, f"more than {DEEPEST} levels within each other", _place(text, node))
    match node:
        case ast.BoolOp():
            return ast.copy_location(ast.BoolOp(node.op, [_condition(text, v, levels - 1) for v in node.values]), node)
        case ast.UnaryOp(op=ast.Not()):
            return ast.copy_location(ast.UnaryOp(node.op, _condition(text, node.operand, levels - 1)), node)
        case ast.Compare():
            right = [_side(text, op, other) for op, other in zip(node.ops, node.comparators, strict=True)]
            return ast.copy_location(ast.Compare(_operand(text, node.left), node.ops, right), node)
        case ast.Name() | ast.Attribute() | ast.Constant():
            raise _wrong(text, "a comparison is missing", _place(text, node))
    raise _wrong(text, f"{_called(node)} is not allowed", _place(text, node))


def _side(text: str, op: ast.cmpop, node: ast.expr) -> ast.expr:
    """What stands to the right of an operator."""
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(node, ast.List | ast.Tuple):
            raise _wrong(text, "`in` takes a list, as in [64, 128]", _place(text, node))
        constants = [_operand(text, element) for element in node.elts]
        if any(not isinstance(constant, ast.Constant) for constant in constants):
            raise _wrong(text, "a list holds numbers and quoted text alone", _place(text, node))
        return ast.copy_location(ast.List(constants, ast.Load()), node)
    if type(op) not in _ORDER:
        raise _wrong(text, "`is` is not allowed", _place(text, node))
    return _operand(text, node)


def _operand(text: str, node: ast.expr) -> ast.expr:
    """A name or a constant."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if not isinstance(number, bool):
            return ast.copy_location(ast.Constant(-number), node)
        case ast.Name() | ast.Attribute() if name := _dotted(node):
            return ast.copy_location(ast.Name(name, ast.Load()), node)
    raise _wrong(text, f"{_called(node)} is not allowed", _place(text, node))


def _dotted(node: ast.expr) -> str | None:
    """`lora.rank`; None where something else than names is joined by dots."""
    if isinstance(node, ast.Attribute):
        return f"{before}.{node.attr}" if (before := _dotted(node.value)) else None
    return node.id if isinstance(node, ast.Name) else None


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.List) else [node]


def _names(tree: ast.expr) -> Iterator[str]:
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _holds(node: ast.expr, row: Mapping[str, Value]) -> bool:
    match node:
        case ast.BoolOp(op=ast.And()):
            return all(_holds(part, row) for part in node.values)
        case ast.BoolOp():
            return any(_holds(part, row) for part in node.values)
        case ast.UnaryOp():
            return not _holds(node.operand, row)
        case ast.Compare():
            sides = [node.left, *node.comparators]
            return all(_compared(op, sides[i], sides[i + 1], row) for i, op in enumerate(node.ops))
    raise AssertionError(node)  # parse lets no other through


def _compared(op: ast.cmpop, left: ast.expr, right: ast.expr, row: Mapping[str, Value]) -> bool:
    value = _of(left, row)
    if isinstance(op, ast.In | ast.NotIn):
        found = any(_kind(value) == _kind(other) and value == other for other in (_of(e, row) for e in _elements(right)))
        return value is not None and found == isinstance(op, ast.In)
    other = _of(right, row)
    if value is None or other is None:
        return False
    # Of one column's values some may be numbers and others text, such as an option that takes both: they are not equal.
    return _ORDER[type(op)](value, other) if _kind(value) == _kind(other) else isinstance(op, ast.NotEq)


def _of(node: ast.expr, row: Mapping[str, Value]) -> Value:
    return row[node.id] if isinstance(node, ast.Name) else _value(node.value) if isinstance(node, ast.Constant) else None


def _value(value: Any) -> Value:
    """As Python's own bool, float or str; None of what is missing."""
    import numpy as np

    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.number):
        return None if value != value else _number(value)  # noqa: PLR0124 - NaN
    return value if isinstance(value, str) else None


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _kind(value: Value) -> str | None:
    """In the words of messages."""
    if value is None:
        return None
    return {bool: "True or False", str: "text"}.get(type(value), "a number")


def _called(node: ast.expr) -> str:
    """What a user would call it."""
    names: Iterable[tuple[tuple[type[ast.expr], ...], str]] = (
        ((ast.Call,), "a call"),
        ((ast.BinOp, ast.UnaryOp), "arithmetic"),
        ((ast.Subscript,), "an index"),
        ((ast.List, ast.Tuple, ast.Set, ast.Dict), "a list outside of `in`"),
        ((ast.Compare, ast.BoolOp), "a comparison as a value"),
        ((ast.Constant,), "this value"),
    )
    return next((words for types, words in names if isinstance(node, types)), "this")


def _hint(text: str) -> str:
    if not text:
        return "it is empty"
    return "a comparison is written ==" if re.search(r"(?<![=!<>])=(?!=)", text) else "it cannot be read"


def _place(text: str, node: ast.expr) -> int:
    """Characters before the node; the parser counts bytes."""
    line = text.splitlines()[node.lineno - 1]
    return len(line.encode()[: node.col_offset].decode(errors="ignore"))


def _wrong(text: str, what: str, before: int) -> InputError:
    return InputError(f"filter {text!r}: {what}, at character {before + 1}; allowed: {GRAMMAR}")
