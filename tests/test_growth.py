"""No text from outside costs more than linear time."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from typing import Any

import pytest
from growth import FIRST, QUICK, Hostile, cost, hostile_texts, is_linear, patterns

PATTERNS = patterns()
Way = Callable[[re.Pattern, Any], Any]
ONCE: list[Way] = [re.Pattern.search, re.Pattern.match, re.Pattern.fullmatch]
OFTEN: list[Way] = [
    lambda pattern, text: sum(1 for _ in pattern.finditer(text)),
    lambda pattern, text: pattern.sub(lambda match: match[0], text),
    re.Pattern.split,
]
LOOKED_AT = 12  # of the texts and ways that cost most: what costs less grows no faster


@pytest.mark.parametrize("pattern", PATTERNS, ids=PATTERNS.values())
def test_a_pattern_takes_linear_time_over_every_text(pattern: tuple[str | bytes, int]) -> None:
    compiled = re.compile(*pattern)
    plain, led = hostile_texts(pattern[0])
    tried = [(cost_of(compiled, way, one), one, way) for way in (*ONCE, *OFTEN) for one in plain]
    tried += [(cost_of(compiled, way, one), one, way) for way in ONCE for one in led]
    costly = [one for one in tried if one[0] >= QUICK]
    for _, one, way in heapq.nlargest(LOOKED_AT, costly, key=lambda one: one[0] / len(one[1].text(FIRST))):
        made = lambda size, one=one: in_kind(compiled, one.text(size))  # noqa: E731
        assert is_linear(lambda text, way=way: way(compiled, text), made), one


def cost_of(pattern: re.Pattern, way: Way, one: Hostile) -> float:
    return cost(lambda text: way(pattern, text), in_kind(pattern, one.text(FIRST)))


def in_kind(pattern: re.Pattern, text: str) -> str | bytes:
    """The text as the pattern takes it."""
    return text if isinstance(pattern.pattern, str) else text.encode("latin-1")
