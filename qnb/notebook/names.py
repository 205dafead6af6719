"""Which variables a cell needs, and which it makes: read from its text, without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Names:
    """`used` before the cell itself has assigned them, in order; `assigned` at its top level, in order."""

    used: dict[str, int] = field(default_factory=dict)  # and the line where
    assigned: dict[str, None] = field(default_factory=dict)


def names_of(tree: ast.Module) -> Names:
    """The names of a cell."""
    names = Names()
    _block(tree.body, names, set())
    return names


def _block(statements: Iterable[ast.stmt], names: Names, sure: set[str]) -> set[str]:
    """Read statements in order; `sure` are names that are assigned whatever happens, and it grows."""
    for statement in statements:
        match statement:
            case ast.If(test, body, orelse) | ast.While(test, body, orelse):
                _read([test], names, sure)
                sure |= _block(body, names, set(sure)) & _block(orelse, names, set(sure))
            case ast.For(target, iterable, body, orelse) | ast.AsyncFor(target, iterable, body, orelse):
                _read([iterable], names, sure)
                inside = sure | _read([target], names, set(sure))
                _block(body, names, inside)
                _block(orelse, names, set(sure))
            case ast.With(items, body) | ast.AsyncWith(items, body):
                sure |= _read(items, names, sure)
                _block(body, names, sure)
            case ast.Try(body, handlers, orelse, finalbody) | ast.TryStar(body, handlers, orelse, finalbody):
                _block([*body, *orelse], names, set(sure))
                for handler in handlers:
                    caught = {handler.name} if handler.name else set()
                    _read([handler.type] if handler.type else [], names, sure)
                    _block(handler.body, names, sure | caught)
                _block(finalbody, names, sure)
            case ast.Match(subject, cases):
                _read([subject], names, sure)
                for case in cases:
                    inside = sure | _read([case.pattern], names, sure)
                    _read([case.guard] if case.guard else [], names, inside)
                    _block(case.body, names, inside)
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                sure |= _read([statement], names, sure | {name})
            case _:
                sure |= _read([statement], names, sure)
    return sure


def _read(nodes: Iterable[ast.AST], names: Names, sure: set[str]) -> set[str]:
    loads, stores = _scan(nodes)
    for name, line in loads.items():
        if name not in sure:
            names.used.setdefault(name, line)
    names.assigned.update(dict.fromkeys(stores))
    return set(stores)


def _scan(nodes: Iterable[ast.AST]) -> tuple[dict[str, int], dict[str, None]]:
    """The names that these nodes look up and those that they assign, each in one scope; inner scopes only look up."""
    loads: dict[str, int] = {}
    stores: dict[str, None] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                loads.setdefault(node.id, node.lineno)
            else:
                stores[node.id] = None
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            loads.setdefault(node.target.id, node.lineno)
            stores[node.target.id] = None
            waiting.append(node.value)
        elif isinstance(node, (*_SCOPES, *_COMPREHENSIONS)):
            if not isinstance(node, (ast.Lambda, *_COMPREHENSIONS)):
                stores[node.name] = None
            for name, line in _free(node).items():
                loads.setdefault(name, line)
        else:
            stores.update(dict.fromkeys(_bound(node)))
            waiting += ast.iter_child_nodes(node)
    return loads, stores


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a node assigns which are no Name."""
    if isinstance(node, ast.alias) and node.name != "*":
        yield node.asname or node.name.partition(".")[0]
    elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name


def _free(scope: ast.AST) -> dict[str, int]:
    """The names that a function, class, lambda or comprehension looks up outside of itself."""
    inner = list(ast.iter_child_nodes(scope))
    arguments = [node for node in inner if isinstance(node, ast.arguments)]
    outer = list(getattr(scope, "decorator_list", []))
    own = {each.arg for args in arguments for each in ast.walk(args) if isinstance(each, ast.arg)}
    loads, stores = _scan([node for node in inner if node not in outer])
    shared = {n for each in ast.walk(scope) if isinstance(each, (ast.Global, ast.Nonlocal)) for n in each.names}
    if not isinstance(scope, ast.ClassDef):  # whose names its methods do not see
        own |= set(stores) - shared
    free = {name: line for name, line in loads.items() if name not in own}
    for name, line in _scan(outer)[0].items():
        free.setdefault(name, line)
    return free
