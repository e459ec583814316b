"""Names that people and programs choose for themselves: what may be in one, and which look alike.

Nothing here knows a task, a database or HTTP.
"""

from __future__ import annotations

import functools
import unicodedata

from confusable_homoglyphs import confusables

from errors import TrackerError

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, bidi and zero-width characters, breaks of lines


def seen(text: str) -> str:
    """The text without what nobody sees, and what turns its surroundings around."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if unicodedata.category(character) not in UNSEEN)


def look(name: str) -> str:
    """What a name looks like: two names with one look are one to whoever reads them."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return folded if folded.isascii() else "".join(map(looks_like, folded))


@functools.lru_cache(maxsize=4096)
def looks_like(character: str) -> str:
    """The ASCII character for which this one may be taken, a letter rather than a digit; or itself."""
    if character.isascii():
        return character
    alike = [one["c"].casefold() for one in confusables.confusables_data.get(character, ())]
    plain = [one for one in alike if len(one) == 1 and one.isascii()]
    return min(plain, key=lambda one: (not one.isalpha(), one), default=character)


def check_new_name(name: str) -> None:
    """Refuses (invalid) a new account's name that nobody could tell from another one, or not see."""
    if name != name.strip() or name != seen(name):
        raise TrackerError("invalid", "no invisible characters, and no blanks at its ends", "username")
    if confusables.is_dangerous(unicodedata.normalize("NFC", name)):  # some systems type é as two
        raise TrackerError("invalid", "letters of several scripts, some of which look alike", "username")
