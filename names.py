"""Names that people and programs choose for themselves: what may be in one, and which look alike.

Nothing here knows a task, a database or HTTP.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from confusable_homoglyphs import categories, confusables

from errors import TrackerError

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, bidi and zero-width characters, breaks of lines

# Those of other categories that nobody sees either: fillers, joiners, and what chooses how an emoji is drawn.
IGNORED = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    *(map(chr, range(first, last + 1)) for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF)))
)


def seen(text: str) -> str:
    """The text without what nobody sees, and what turns its surroundings around."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if unicodedata.category(character) not in UNSEEN)


ALIKE = str.maketrans("1|i0", "lllo")  # those of ASCII: I is i to casefold, and l to whoever looks at it


def look(name: str) -> str:
    """What a name looks like: two names with one look are one to whoever reads them.

    A skeleton as Unicode's TR39 has it, of folded letters, and a Latin letter without its marks. Blanks are one.
    """
    name = "".join(one for one in name if one not in IGNORED)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    if not folded.isascii():
        folded = "".join(unmarked(map(looks_like, unicodedata.normalize("NFD", folded)))).casefold()
    return " ".join(folded.translate(ALIKE).replace("rn", "m").replace("vv", "w").split())


def unmarked(characters: Iterable[str]) -> Iterator[str]:
    """The characters without the marks of ASCII's; those of other letters make others of them, as in й."""
    latin = False
    for character in characters:
        if unicodedata.category(character) not in ("Mn", "Me"):
            latin = character.isascii()
        elif latin:
            continue
        yield character


@functools.lru_cache(maxsize=4096)
def looks_like(character: str) -> str:
    """The ASCII character for which this one may be taken, a letter rather than a digit; or one of all alike."""
    if character.isascii() or unicodedata.combining(character):
        return character
    itself, capital = alike(character), alike(character.upper())
    further = set().union(*map(alike, itself | capital))  # all are alike that look like one of them
    for some in (itself, capital, further):
        if plain := [one for one in some if one.isascii()]:
            return min(plain, key=lambda one: (not one.isalpha(), one))
    first = min({character} | itself | capital | further)
    return character if first == character else looks_like(first)


def alike(character: str) -> set[str]:
    """The characters, without marks, that this one may be taken for."""
    found = (one["c"].casefold() for one in confusables.confusables_data.get(character, ()))
    plain = ("".join(unmarked(unicodedata.normalize("NFKD", one))) for one in found)
    return {one for one in plain if len(one) == 1}


def check_new_name(name: str) -> None:
    """Refuses (invalid) a new account's name that nobody could tell from another one, or not see."""
    if name != name.strip() or name != seen(name) or not look(name):
        raise TrackerError("invalid", "no invisible characters, and no blanks at its ends", "username")
    if any(map(is_mixed, re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name)))):  # é may be two
        raise TrackerError("invalid", "a word with letters of several scripts, which look alike", "username")


def is_mixed(word: str) -> bool:
    """Whether a word has Latin letters, and ones of another script that may be taken for Latin ones."""
    others = [one for one in word if one.isalpha() and categories.alias(one) != "LATIN"]
    latin = any(one.isalpha() and categories.alias(one) == "LATIN" for one in word)
    return latin and any(looks_like(one.casefold()).isascii() for one in others)
