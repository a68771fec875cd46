"""Expressions of a project file: parsed to a few kinds of node, never run as Python.

An expression is arithmetic (`+ - * / **`) of numbers, names and named functions. Its text is
parsed by `ast`, every node is looked up in a list of what is allowed, and the tree is turned
into torch operations by walking it; nothing is ever given to the interpreter. What is not in
the list is refused with its column.

>>> e = Expression.parse("a*exp(-x/tau) + 1", {"x"})
>>> e.names
('a', 'tau')
>>> one = torch.tensor(1.0, dtype=torch.float64)
>>> float(e({"x": 0 * one, "a": 2 * one, "tau": one}))
3.0
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eadem.errors import nearest
from eadem.project.errors import ProjectError

__all__ = ["CONSTANTS", "DEPTH", "EXPONENT", "FUNCTIONS", "LENGTH", "Expression", "usable"]

#: Characters, nested operations and constant exponents above which an expression is refused.
LENGTH, DEPTH, EXPONENT = 2000, 60, 64

Values = Mapping[str, Tensor]
_Node = Callable[[Values], Tensor]

#: Functions by name, with the number of their arguments.
FUNCTIONS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "abs": (1, torch.abs),
    "acos": (1, torch.acos),
    "asin": (1, torch.asin),
    "atan": (1, torch.atan),
    "atan2": (2, torch.atan2),
    "cos": (1, torch.cos),
    "cosh": (1, torch.cosh),
    "erf": (1, torch.erf),
    "erfc": (1, torch.erfc),
    "exp": (1, torch.exp),
    "expm1": (1, torch.expm1),
    "log": (1, torch.log),
    "log10": (1, torch.log10),
    "log1p": (1, torch.log1p),
    "log2": (1, torch.log2),
    "max": (2, torch.maximum),
    "min": (2, torch.minimum),
    "sigmoid": (1, torch.sigmoid),
    "sin": (1, torch.sin),
    "sinc": (1, torch.sinc),
    "sinh": (1, torch.sinh),
    "sqrt": (1, torch.sqrt),
    "tan": (1, torch.tan),
    "tanh": (1, torch.tanh),
}
CONSTANTS = {"pi": math.pi, "e": math.e}

_OPERATIONS: dict[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.div,
}
#: What people write, and what it is called here.
_REFUSED = {
    ast.Attribute: "a dot",
    ast.BoolOp: "'and' and 'or'",
    ast.Compare: "a comparison",
    ast.Dict: "a dictionary",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.IfExp: "'if'",
    ast.JoinedStr: "a string",
    ast.Lambda: "'lambda'",
    ast.List: "a list",
    ast.ListComp: "a comprehension",
    ast.NamedExpr: "':='",
    ast.Set: "a set",
    ast.SetComp: "a comprehension",
    ast.Starred: "'*' before an argument",
    ast.Subscript: "square brackets",
    ast.Tuple: "a comma outside of a function",
}


def usable(name: str) -> bool:
    """Whether a name can stand in an expression.

    >>> usable("width"), usable("__class__"), usable("exp"), usable("2a")
    (True, False, False, False)
    """
    import keyword

    return (
        name.isascii()
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and "__" not in name
        and name not in FUNCTIONS
        and name not in CONSTANTS
    )


@dataclass(frozen=True)
class Expression:
    """An expression as a function of named values; `names` are those it leaves open, in order.

    `linear`: (coefficient by name, constant) where it is affine in its names, else None.
    """

    text: str
    names: tuple[str, ...]
    linear: tuple[dict[str, float], float] | None = field(compare=False, repr=False)
    _run: _Node = field(compare=False, repr=False)

    def __call__(self, values: Values) -> Tensor:
        """The value, by torch operations, for a value of every name."""
        return self._run(values)

    @classmethod
    def parse(
        cls,
        text: str,
        given: Collection[str] = (),
        known: Collection[str] | None = None,
        length: int = LENGTH,
    ) -> Expression:
        """Parse an expression. `given` are names that are no parameters (x); `known` are the
        only names allowed, dotted ones among them (None: any name).

        Raises ProjectError: what is refused, and its column.
        """
        walk = _Walk(_checked(text, length), frozenset(given), known)
        run = walk.node(walk.tree, 0)
        names = tuple(n for n in walk.seen if n not in walk.given)
        linear = None if set(walk.seen) & walk.given else _linear(walk.tree)
        return cls(walk.text, names, linear, run)


def _checked(text: object, length: int) -> str:
    if not isinstance(text, str):
        raise ProjectError(f"an expression is a string in quotes, not {text!r:.60}")
    if len(text) > length:
        raise ProjectError(
            f"an expression has at most {length} characters, this one has {len(text)}"
        )
    for i, c in enumerate(text):
        if not (c.isascii() and (c.isprintable() or c in "\t\r\n")):
            raise ProjectError(
                f"column {i + 1}: the character {c!a} is not allowed in an expression; it is "
                "written in ASCII letters, digits and + - * / ** ( ) , ."
            )
    return " ".join(text.split())


class _Walk:
    """One pass over a tree, which keeps the names that it meets."""

    def __init__(self, text: str, given: frozenset[str], known: Collection[str] | None) -> None:
        self.text, self.given, self.known = text, given, known
        self.seen: dict[str, None] = {}
        if not text:
            raise ProjectError("an expression is empty")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what CPython has to say of odd literals
                self.tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            hint = f"column {error.offset}: " if error.offset else ""
            reason = (error.msg or "invalid syntax").partition(".")[0]
            raise ProjectError(f"{hint}{reason}, in {text!r:.200}") from None
        except (ValueError, RecursionError, MemoryError):
            raise ProjectError(
                f"an expression cannot be parsed: too deep, or a number too long: {text!r:.80}"
            ) from None

        self.shallow()

    def shallow(self) -> None:
        """Refuse what is nested too deep, without recursion."""
        layer: list[ast.AST] = [self.tree]
        for _ in range(2 * DEPTH):  # an operation is a layer, its operator and context one more
            layer = [child for node in layer for child in ast.iter_child_nodes(node)]
            if not layer:
                return
        raise self.refuse(layer[0], f"more than {DEPTH} operations inside one another")

    def refuse(self, node: ast.AST, what: str) -> ProjectError:
        column = getattr(node, "col_offset", 0) + 1
        return ProjectError(f"column {column}: {what}, in {self.text!r:.200}")

    def node(self, node: ast.expr, depth: int) -> _Node:
        if depth > DEPTH:
            raise self.refuse(node, f"more than {DEPTH} operations inside one another")
        match node:
            case ast.Constant(value=bool() | complex() | str() | bytes() | None):
                raise self.refuse(node, "only real numbers are allowed as constants")
            case ast.Constant(value=int() | float() as value):
                return _constant(self.number(node, value))
            case ast.Name(id=name):
                return self.name(node, name)
            case ast.Attribute(value=ast.Name(id=block), attr=name) if self.dotted:
                return self.name(node, f"{block}.{name}")
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                value_of = self.node(inner, depth + 1)
                return lambda v: -value_of(v)
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return self.node(inner, depth + 1)
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return self.power(left, right, depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                apply = _OPERATIONS[type(op)]
                a, b = self.node(left, depth + 1), self.node(right, depth + 1)
                return lambda v: apply(a(v), b(v))
            case ast.BinOp(op=op):
                hint = "; a power is written **" if isinstance(op, ast.BitXor) else ""
                raise self.refuse(node, f"only + - * / ** are allowed{hint}")
            case ast.Call():
                return self.call(node, depth)
        what = _REFUSED.get(type(node), f"what Python calls {type(node).__name__}")
        raise self.refuse(node, f"an expression cannot have {what}")

    @property
    def dotted(self) -> bool:
        return self.known is not None and any("." in n for n in self.known)

    def number(self, node: ast.expr, value: float) -> float:
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise self.refuse(node, "the number is too large")
        return found

    def name(self, node: ast.expr, name: str) -> _Node:
        if name in CONSTANTS and (self.known is None or name not in self.known):
            return _constant(CONSTANTS[name])
        if name in FUNCTIONS:
            raise self.refuse(node, f"{name} is a function: {name}(…)")
        if self.known is not None and name not in self.known and name not in self.given:
            raise self.refuse(node, f"there is no {name!r}; {nearest(name, self.known)}")
        if self.known is None and name not in self.given and not usable(name):
            raise self.refuse(node, f"{name!r} cannot be the name of a parameter")
        self.seen[name] = None
        return lambda v: v[name]

    def power(self, left: ast.expr, right: ast.expr, depth: int) -> _Node:
        base = self.node(left, depth + 1)
        fixed = _linear(right)
        if fixed is not None and not fixed[0]:
            exponent = fixed[1]
            if not abs(exponent) <= EXPONENT:
                raise self.refuse(
                    right, f"constant exponents lie between −{EXPONENT} and {EXPONENT}"
                )
            self.node(right, depth + 1)
            return lambda v: torch.pow(base(v), exponent)
        power = self.node(right, depth + 1)
        return lambda v: torch.pow(base(v), power(v))

    def call(self, node: ast.Call, depth: int) -> _Node:
        if not isinstance(node.func, ast.Name):
            raise self.refuse(node, "only named functions can be called")
        name = node.func.id
        if name not in FUNCTIONS:
            raise self.refuse(
                node, f"there is no function {name!r}; {nearest(name, FUNCTIONS)}"
            )
        size, function = FUNCTIONS[name]
        if node.keywords or len(node.args) != size:
            raise self.refuse(node, f"{name} takes {size} argument{'s' * (size > 1)}")
        arguments = [self.node(a, depth + 1) for a in node.args]
        return lambda v: function(*(a(v) for a in arguments))


def _constant(value: float) -> _Node:
    found = torch.tensor(value, dtype=torch.float64)
    return lambda _: found


def _linear(node: ast.expr) -> tuple[dict[str, float], float] | None:
    """(coefficients, constant) of an affine expression; of a constant one, ({}, value)."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            try:
                return {}, float(value)
            except OverflowError:
                return {}, math.inf
        case ast.Name(id=name):
            return ({}, CONSTANTS[name]) if name in CONSTANTS else ({name: 1.0}, 0.0)
        case ast.Attribute(value=ast.Name(id=block), attr=name):
            return {f"{block}.{name}": 1.0}, 0.0
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=inner):
            found = _linear(inner)
            return found and _scaled(found, -1.0 if isinstance(op, ast.USub) else 1.0)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _linear(left), _linear(right)
            return None if a is None or b is None else _joined(a, op, b)
    return None


def _scaled(a: tuple[dict[str, float], float], by: float) -> tuple[dict[str, float], float]:
    return {n: c * by for n, c in a[0].items()}, a[1] * by


def _joined(
    a: tuple[dict[str, float], float], op: ast.operator, b: tuple[dict[str, float], float]
) -> tuple[dict[str, float], float] | None:
    try:
        match op:
            case ast.Add() | ast.Sub():
                other = _scaled(b, -1.0) if isinstance(op, ast.Sub) else b
                names = {n: a[0].get(n, 0.0) + other[0].get(n, 0.0) for n in a[0] | other[0]}
                return names, a[1] + other[1]
            case ast.Mult() if not a[0]:
                return _scaled(b, a[1])
            case ast.Mult() if not b[0]:
                return _scaled(a, b[1])
            case ast.Div() if not b[0]:
                return _scaled(a, 1 / b[1])
            case ast.Pow() if not a[0] and not b[0] and abs(b[1]) <= EXPONENT:
                value = a[1] ** b[1]
                return ({}, value) if isinstance(value, float) else None
    except (ArithmeticError, ValueError):
        pass
    return None
