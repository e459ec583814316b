"""How the work that a function does grows with its input: counted in this thread's CPU time, and never as a time.

And which patterns the tracker's modules have, with the texts that each of them might take too long over.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib
import importlib.util
import inspect
import itertools
import math
import re
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 50_000  # repetitions
FIRST = LONGEST // 16
QUICK = 0.0002  # seconds: what takes less at FIRST takes, were it quadratic, at most 50 ms at LONGEST
ENOUGH = 0.004  # seconds: the growth is looked at from the size on that takes so long, were it linear
ROUNDS = 5
PATIENCE = 8  # seconds of this thread: for so long a neighbour may disturb before it is taken for growth


def cost(run: Callable[[Any], Any], given: Any) -> float:
    """This thread's CPU time for it."""
    begin = time.thread_time()
    run(given)
    return time.thread_time() - begin


def is_linear(run: Callable[[Any], Any], make: Callable[[int], Any]) -> bool:
    """Whether twice the input takes at most 2.5 times the work. `make` makes the input of a size."""
    if (first := cost(run, make(FIRST))) < QUICK:
        return True
    size = FIRST * 2 ** math.ceil(math.log2(max(1, min(ENOUGH / first, LONGEST / 2 / FIRST))))
    with without_collector():
        # A step, as where memory is had, is no growth; and what grows faster does so from any size on.
        return any(doubles(run, make, size // part) for part in (1, 2, 4))


def doubles(run: Callable[[Any], Any], make: Callable[[int], Any], size: int) -> bool:
    """Whether it is so from that size on, by the best of some rounds, and of more while a neighbour disturbs.

    What grows faster has its ratio in the best of any number of rounds: more of them never let it through.
    """
    once, twice = make(size), make(2 * size)
    least = greatest = math.inf
    end = time.thread_time() + PATIENCE
    for number in itertools.count(1):
        least, greatest = min(least, cost(run, once)), min(greatest, cost(run, twice))
        if greatest <= 2.5 * least:
            return True
        if number >= ROUNDS:
            if time.thread_time() > end:
                return False
            time.sleep(0.05)  # the neighbour may have gone


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Garbage is collected when it is: not in the midst of what is measured."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ── Patterns ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def modules() -> list[ModuleType]:
    """All modules of the tracker, and the crawler."""
    names = [file.stem for file in ROOT.glob("*.py")]
    names += [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in ROOT.glob("dialects/**/*.py")
    ]
    return [*map(importlib.import_module, sorted(names)), crawler()]


@functools.cache
def crawler() -> ModuleType:
    """examples/crawl.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("crawler_of_growth", ROOT / "examples/crawl.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def patterns() -> dict[tuple[str | bytes, int], str]:
    """Each pattern of the modules, with its flags, and where it stands.

    Compiled in what a module holds or an application's routes, as a limit of a type, or as text in a call of `re`.
    """
    found: dict[tuple[str | bytes, int], str] = {}
    known = modules()
    own = {module.__name__ for module in known}
    for module in known:
        for name, value in vars(module).items():
            for pattern in held_by(value, own, set()):
                found.setdefault(pattern, f"{module.__name__}.{name}")
        for line, pattern in written_in(module):
            found.setdefault(pattern, f"{module.__name__}:{line}")
    for route in importlib.import_module("tracker").create_app().routes:
        for pattern in held_by(getattr(route, "path_regex", None), own, set()):
            found.setdefault(pattern, f"the route {route.path}")
    return found


def held_by(value: Any, own: set[str], seen: set[int]) -> Iterator[tuple[str | bytes, int]]:
    """The patterns that a value is, or holds: containers, our own classes and functions, types and what is said there.

    `own`: the names of our modules; `seen`: the values that were looked at already.
    """
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, re.Pattern):
        yield value.pattern, value.flags & sum(FLAGS.values())
    elif isinstance(value, msgspec.Meta) and value.pattern:
        yield value.pattern, 0
    for inner in inside(value, own):
        yield from held_by(inner, own, seen)


def inside(value: Any, own: set[str]) -> Iterator[Any]:
    """What a value holds."""
    if isinstance(value, dict):
        yield from itertools.chain(value.keys(), value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif said := (*getattr(value, "__metadata__", ()), *typing.get_args(value)):
        yield from said
    elif getattr(value, "__module__", None) not in own:
        return
    elif isinstance(value, type):
        yield from vars(value).values()
        with contextlib.suppress(NameError):  # of what is imported for type checkers alone
            yield from typing.get_type_hints(value, include_extras=True).values()
    elif inspect.isfunction(value):
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        yield from inspect.getclosurevars(value).nonlocals.values()


FLAGS = {"IGNORECASE": re.IGNORECASE.value, "VERBOSE": re.VERBOSE.value}  # those that change how a pattern is read
CALLS = ("compile", "search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer")


class Named(str):
    """The name of a local variable, or of what it has: it stands where their values would."""

    def __getattr__(self, name: str) -> Named:
        return Named(name)


def statements(tree: ast.Module) -> Iterator[ast.stmt | ast.expr]:
    """Those of a module, and in the place of a class what it consists of."""
    for one in tree.body:
        yield from (*one.decorator_list, *one.bases, *one.body) if isinstance(one, ast.ClassDef) else (one,)


def written_in(module: ModuleType) -> Iterator[tuple[int, tuple[str | bytes, int]]]:
    """The patterns that stand in calls of `re`, with their lines. In the place of a local name that name stands."""
    source = Path(module.__file__).read_text("utf-8")
    written = source.splitlines()
    for node in itertools.chain.from_iterable(
        ast.walk(one)
        for one in statements(ast.parse(source))
        if any("re." in line for line in written[one.lineno - 1 : one.end_lineno])
    ):
        called = getattr(node, "func", None)
        if isinstance(called, ast.Attribute) and getattr(called.value, "id", None) == "re" and called.attr in CALLS:
            given = node.args[0]
            local = {one.id: Named(one.id) for one in ast.walk(given) if isinstance(one, ast.Name)}
            pattern = eval(compile(ast.Expression(given), module.__file__, "eval"), {**local, **vars(module)})
            said = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
            yield node.lineno, (pattern, sum(FLAGS[name] for name in said & FLAGS.keys()))


# ── Texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
KINDS = {"DIGIT": "0", "SPACE": " ", "WORD": "a", "NOT_DIGIT": "a", "NOT_SPACE": "a", "NOT_WORD": "-"}
MOST_OPENINGS = 60


class Hostile(NamedTuple):
    """What texts are made of that a pattern may take long over: a beginning, what is repeated, an end."""

    first: str
    unit: str
    last: str

    def text(self, size: int) -> str:
        return self.first + self.unit * size + self.last


ENDS = ("", "\0\n")  # nothing, and what no pattern expects


def hostile_texts(pattern: str | bytes, flags: int) -> tuple[list[Hostile], list[Hostile]]:
    """Of one unit: every control character, every character that the pattern names, every way to begin a match.

    And of two: such a character, after a way to begin a match.
    """
    tree = re._parser.parse(pattern, flags & re.VERBOSE)
    named, begun = sorted(characters(tree)), sorted(openings(tree))
    units = dict.fromkeys((*CONTROLS, *named, *begun))
    return (
        [Hostile("", unit, last) for unit in units for last in ENDS],
        [Hostile(first, unit, last) for first in begun for unit in named for last in ENDS],
    )


def characters(tree: Any) -> set[str]:
    """The characters that a pattern names; of a range its ends, of a kind one."""
    found = set()
    for code, value in tree:
        if code.name in ("LITERAL", "NOT_LITERAL"):
            found.add(chr(value))
        elif code.name == "RANGE":
            found.update(map(chr, value))
        elif code.name == "CATEGORY":
            found.add(KINDS[value.name.removeprefix("CATEGORY_")])
        elif code.name == "ANY":
            found.add("a")
        for inner in parts(code.name, value):
            found |= characters(inner)
    return found


def parts(name: str, value: Any) -> list[Any]:
    """What a node of a pattern has in it."""
    if name == "IN":
        return [value]
    if name == "BRANCH":
        return value[1]
    if name in ("ASSERT", "ASSERT_NOT", "SUBPATTERN", "MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        return [value[-1]]
    return [value] if name == "ATOMIC_GROUP" else []


def openings(tree: Any) -> set[str]:
    """Texts with which a match may begin: as far as each of its nodes, on each of its branches; words are whole."""
    begun, far = {""}, {""}
    followed = itertools.zip_longest(tree, list(tree)[1:])
    for (code, value), after in followed:
        far = {first + rest for first in far for rest in ways(code.name, value)}
        far = set(sorted(far, key=len)[:MOST_OPENINGS])
        if not (code.name == "LITERAL" and after and after[0].name == "LITERAL"):
            begun |= far
    return set(sorted(begun - {""}, key=len)[:MOST_OPENINGS])


def ways(name: str, value: Any) -> set[str]:
    """Some texts that a node of a pattern takes, and the beginnings of those."""
    if name == "LITERAL":
        return {chr(value)}
    if name == "IN" and value[0][0].name != "NEGATE":
        return {sorted(characters(value))[0]}
    if name in ("IN", "NOT_LITERAL", "ANY"):
        return {"a"}
    if name.endswith("_REPEAT"):
        least = max(1, value[0])
        once = openings(value[2])
        return {*once, *(one * least for one in once), *([""] if value[0] == 0 else [])}
    inner = [openings(one) for one in parts(name, value)] if not name.startswith("ASSERT") else []
    return set().union(*inner) if inner else {""}
