"""The map at the top of tracker.py is true: its sections, their order, and what refers to a later one."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import tracker

SOURCE = Path(tracker.__file__).read_text("utf-8")
BANNERS = [
    (number, match[1])
    for number, line in enumerate(SOURCE.split("\n"), 1)
    if (match := re.fullmatch("# ── (.+?) ─+", line))
]


def section(line: int) -> int:
    """The number of the section in which a line is; -1 before the first."""
    return sum(begins <= line for begins, _ in BANNERS) - 1


def names_defined() -> dict[str, int]:
    """The module's names, and in which section they are defined first."""
    found: dict[str, int] = {}
    for node in ast.parse(SOURCE).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names = [name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)]
        for name in names or filter(None, [getattr(node, "name", None)]):
            found.setdefault(name, section(node.lineno))
    return found


def test_the_docstring_lists_the_sections_in_their_order() -> None:
    listed = re.search(r"\n\n( {4}Ids, .*?)\n\n", tracker.__doc__, re.DOTALL)[1]
    assert [name.strip() for name in " ".join(listed.split()).split("·")] == [name for _, name in BANNERS]


def test_nothing_refers_to_a_later_section_but_what_the_docstring_names() -> None:
    """Counted by name over the plain syntax tree: annotations, parameters, and locals that shadow a later name too."""
    defined = names_defined()
    upward = set()
    for node in ast.parse(SOURCE).body:
        for one in ast.walk(node):
            name = one.id if isinstance(one, ast.Name) else one.arg if isinstance(one, ast.arg) else ""
            if defined.get(name, -1) > section(node.lineno) >= 0:
                upward.add((BANNERS[section(node.lineno)][1], name))
    named = re.findall(r"^    ([A-Z][a-z ]+): ([\w ]+)$", tracker.__doc__, re.MULTILINE)
    assert upward == {(place, name) for place, names in named for name in names.split()}
    assert len(upward) <= 15


MODULES = [path for path in sorted(Path(tracker.__file__).parent.glob("*.py")) if path.stem != "worker"]
MODULES += sorted((Path(tracker.__file__).parent / "dialects").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_what_a_module_takes_of_another_one_is_there(path: Path) -> None:
    """Names that moved elsewhere would be missed no sooner than when somebody opens the page that uses them."""
    tree, ours = ast.parse(path.read_text("utf-8")), {one.stem for one in MODULES if one.parent == MODULES[0].parent}
    imports = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    known = {alias.asname or alias.name: alias.name for alias in imports if alias.name in ours}
    hidden = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}  # a parameter of a module's name
    hidden |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in known and name not in hidden:
                assert hasattr(importlib.import_module(known[name]), node.attr), f"line {node.lineno}: {node.attr}"
