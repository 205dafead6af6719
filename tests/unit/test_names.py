"""Which variables a cell needs and makes."""

from __future__ import annotations

import ast

import pytest

from qnb.notebook.names import names_of

USED = {
    "x = 1\ny = x + z": "z",
    "x += 1": "x",
    "x = x + 1": "x",
    "def f(a, b=q, *c, **d):\n    return f(a), b, c, d, h": "h q",
    "f = lambda v, w=1: v + w + k": "k",
    "[v * w for v in vs if v > w]": "vs w",
    "{k: v for k, v in pairs}": "pairs",
    "class A(B):\n    u = 1\n    def g(self):\n        return u, self": "B u",
    "@wrap\ndef f():\n    pass": "wrap",
    "for i in items:\n    j = i\nprint(j)": "items j print",
    "if c:\n    a = 1\nelse:\n    a = 2\nprint(a)": "c print",
    "if c:\n    a = 1\nprint(a)": "a c print",
    "while n:\n    n = n - 1": "n",
    "with open(p) as f:\n    d = f.read()\nd": "open p",
    "try:\n    a = 1\nexcept E as e:\n    print(e, g)\nfinally:\n    b = 1\nb": "E g print",
    "import os.path as p, sys\nfrom a import b as c\np, sys, c": "",
    "match o:\n    case {'a': r, **rest}:\n        r, rest": "o",
    "def f():\n    global n\n    n = n + m": "m n",
    "def f():\n    def g():\n        nonlocal a\n        a = 2\n    a = 1": "",
    "t: int = 1\nt": "int",
    "(w := 5)\nw": "",
}
ASSIGNED = {
    "a, (b, *c) = 1, (2, 3)\nd.e = f[0] = 1": "a b c",
    "for i in x:\n    j = 1": "i j",
    "def f():\n    inner = 1\nclass A:\n    member = 1\n[k for k in x]": "A f",
    "import os.path, numpy as np\nfrom a import b as c, d": "c d np os",
    "with a as b:\n    c = 1\ntry:\n    e = 1\nexcept E as x:\n    y = 1": "b c e y",
}


@pytest.mark.parametrize("code", USED)
def test_used(code: str) -> None:
    assert sorted(names_of(ast.parse(code)).used) == sorted(USED[code].split())


@pytest.mark.parametrize("code", ASSIGNED)
def test_assigned(code: str) -> None:
    assert sorted(names_of(ast.parse(code)).assigned) == sorted(ASSIGNED[code].split())
