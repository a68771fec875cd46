"""Expressions: what they compute, against numpy; and that nothing else gets in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from eadem.project.errors import ProjectError
from eadem.project.expression import CONSTANTS, FUNCTIONS, Expression

HOSTILE = [
    "__import__('os').system('touch pwned')",
    "open('/etc/passwd')",
    "eval('1')",
    "exec('1')",
    "getattr(x, 'a')",
    "globals()",
    "x.__class__",
    "x.__class__.__mro__[1].__subclasses__()",
    "exp.__globals__",
    "().__class__",
    "a.b",
    "(lambda: 1)()",
    "lambda x: x",
    "[a for a in x]",
    "{a for a in x}",
    "{a: 1 for a in x}",
    "(a for a in x)",
    "[1, 2]",
    "{1: 2}",
    "a[0]",
    "x[::2]",
    "a, b",
    "a if x else b",
    "x < 1",
    "x == 1",
    "x and a",
    "not x",
    "~x",
    "a // b",
    "a % b",
    "a @ b",
    "a ^ 2",
    "a << 3",
    "(a := 1)",
    "'text'",
    "f'{x}'",
    "b'text'",
    "True",
    "None",
    "...",
    "1j",
    "await x",
    "(yield x)",
    "import os",
    "a; b",
    "a = 1",
    "exp(*x)",
    "exp(**x)",
    "exp(x=1)",
    "exp()",
    "exp(x, x)",
    "atan2(x)",
    "exp(x)(x)",
    "exp",
    "x(1)",
    "print(x)",
    "__builtins__",
    "a__b",
    "lambda",
    "",
    "   ",
    "# nothing",
    "a\0b",
    "a\x1b[31m",
    "\uff45xp(x)",  # full-width e: Python itself would read exp
    "\u0435xp(x)",  # Cyrillic
    "a\u200bb",
    "x\u2212a",
    "a\u2028b",
    "9**9**9**9",
    "x**1e9",
    "x**-1000",
    "a**(10*10)",
    "9" * 1999,
    "1e999",
    "9" * 5000,
    "(" * 900 + "1" + ")" * 900,
    "-" * 1900 + "1",
    "x**" + "-" * 1900 + "1",
    "exp(" * 300 + "x" + ")" * 300,
    "x" + "+x" * 400 + "+x" * 400,
    "x" * 2001,
    "x**" * 600 + "x",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_no_arithmetic_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProjectError) as caught:
        Expression.parse(text, {"x"})
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, 3, ["x"], {"x": 1}, b"x"])
def test_only_a_string_is_an_expression(value):
    with pytest.raises(ProjectError, match="string"):
        Expression.parse(value, {"x"})


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="xab0123456789+-*/().,_[]{}<>=:'\"lambdefor ins\\\n", max_size=60))
def test_any_text_is_arithmetic_or_refused(text):
    try:
        found = Expression.parse(text, {"x"})
    except ProjectError:
        return
    values = {n: torch.tensor(1.5, dtype=torch.float64) for n in (*found.names, "x")}
    assert isinstance(found(values), torch.Tensor)


X = np.linspace(0.1, 0.9, 7)
ORACLES = {name: getattr(np, name, None) for name in FUNCTIONS}
ORACLES |= {
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "erf": special.erf,
    "erfc": special.erfc,
    "max": np.maximum,
    "min": np.minimum,
    "sigmoid": special.expit,
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_are_numpys(name):
    size = FUNCTIONS[name][0]
    text = f"{name}(x)" if size == 1 else f"{name}(x, a)"
    given = {"x": torch.from_numpy(X), "a": torch.tensor(0.4, dtype=torch.float64)}
    wanted = ORACLES[name](X) if size == 1 else ORACLES[name](X, 0.4)
    found = Expression.parse(text, {"x"})(given)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-14, atol=1e-15)
    assert found.dtype == torch.float64


@pytest.mark.parametrize(
    "text",
    [
        "a*exp(-x/b) + 2",
        "a - b - x",
        "a/b/x",
        "-x**2",
        "2**-x",
        "x**a**b",
        "(a + b)*(x - 1)**2/(1 + x)",
        "+x - -a",
        "sqrt(x**2 + a**2)**(1/3)",
        "0x10*x + 1_000 + 1e-3",
    ],
)
def test_arithmetic_has_pythons_precedence(text):
    names = {"x": X, "a": 0.7, "b": 1.3, "exp": np.exp, "sqrt": np.sqrt}
    wanted = eval(text, {"__builtins__": {}}, names)
    tensors = {n: torch.as_tensor(names[n], dtype=torch.float64) for n in "xab"}
    found = Expression.parse(text, {"x"})(tensors)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-14)


def test_names_are_those_left_open_in_order():
    found = Expression.parse("b*x + a*sin(pi*b) + e", {"x"})
    assert found.names == ("b", "a")
    assert float(found({n: torch.tensor(0.0) for n in "xab"})) == pytest.approx(math.e)
    assert set(CONSTANTS) == {"pi", "e"}


def test_equal_texts_are_equal_expressions():
    assert Expression.parse("a*x", {"x"}) == Expression.parse(" a*x\n", {"x"})
    assert Expression.parse("a*x", {"x"}) != Expression.parse("x*a", {"x"})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2*a.w + 0.1", ({"a.w": 2.0}, 0.1)),
        ("(a.w - b.w)/2 + 2**3", ({"a.w": 0.5, "b.w": -0.5}, 8.0)),
        ("-a.w", ({"a.w": -1.0}, 0.0)),
        ("a.w*b.w", None),
        ("exp(a.w)", None),
        ("1/a.w", None),
        ("a.w/0", None),
    ],
)
def test_affine_expressions_are_known_as_such(text, wanted):
    assert Expression.parse(text, (), ["a.w", "b.w"]).linear == wanted


def test_dotted_names_are_only_those_known():
    for text in ("a.v", "a.w.real", "c.w", "a.w.__class__", "w"):
        with pytest.raises(ProjectError):
            Expression.parse(text, (), ["a.w", "b.w"])
    with pytest.raises(ProjectError, match=r"nearest: a\.width"):
        Expression.parse("2*a.widht", (), ["a.width", "b.height"])


def test_an_error_names_its_column():
    with pytest.raises(ProjectError, match=r"^column 4: .*a power is written"):
        Expression.parse("1*(x^2)", {"x"})
    with pytest.raises(ProjectError, match=r"^column 7: .*no function 'epx'; nearest: exp"):
        Expression.parse("a*(1 +epx(x))", {"x"})
