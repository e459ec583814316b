"""What is refused, and how values become what the code works with: JSON, forms and rows as Structs.

One root error for everything: a code, the problem in words, the field. Text is made of it at the edge, and nobody reads
it back. Nothing here knows a database, a request or a task.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import functools
import json
import math
import re
import sqlite3
import time
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, Raw

Shape = TypeVar("Shape", bound=msgspec.Struct)


STATUS = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "conflict": 409,
    "granted": 409,  # a conflict with access that there is already, and not with a request for it
    "too_large": 413,
    "unsupported": 415,
    "archived": 423,
    "too_fast": 429,
    "internal": 500,
    "unavailable": 503,
}


class TrackerError(Exception):
    """The one root error: a code of STATUS (or "start": the tracker cannot start), the problem in words, and the field.

    `field` is what of the request the problem is about, such as requests[3].priority; "a, b" for two; empty for none.
    `delay` is the time in seconds after which a refused call may be repeated (too_fast).
    """

    def __init__(self, code: str, problem: str, field: str = "", delay: float | None = None):
        super().__init__(f"{field}: {problem}" if field else problem)
        self.code, self.problem, self.field, self.delay = code, problem, field, delay

    @property
    def message(self) -> str:
        """The refusal in one line, for a person. Code reads `code` and `field`."""
        return str(self)

    def within(self, place: str) -> TrackerError:
        """The same refusal, where its field is part of something larger: priority within requests[3]."""
        return TrackerError(self.code, self.problem, f"{place}.{self.field}", self.delay)


class MethodNotAllowed(TrackerError):
    """What is asked for is there, but for other methods."""

    def __init__(self, method: str, allowed: Iterable[str]):
        self.allowed = list(allowed)
        named = [one for one in sorted(self.allowed) if one not in ("HEAD", "OPTIONS")]  # those are possible everywhere
        super().__init__("method_not_allowed", f"{method} is not possible here: use {' or '.join(named)}")


PLAIN_WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (  # what msgspec says of a value, and what is said to people
        (r"Expected (?:str|array|object) of length >= 1", "must not be empty"),
        (r"Expected str of length >= (\d+)", r"must have at least \1 characters"),
        (r"Expected str of length <= (\d+)", r"must have at most \1 characters"),
        (r"Expected (?:int|float) >= (.+?)(?:\.0)?", r"must be at least \1"),
        (r"Expected (?:int|float) <= (.+?)(?:\.0)?", r"must be at most \1"),
        (r"Expected float > (.+?)(?:\.0)?", r"must be more than \1"),
        (r"Expected float < (.+?)(?:\.0)?", r"must be less than \1"),
        (r"Expected (?:array|object) of length <= 1", "must have at most 1 item"),
        (r"Expected (?:array|object) of length <= (\d+)", r"must have at most \1 items"),
        (r"Expected (?:array|object) of length >= (\d+)", r"must have at least \1 items"),
        (r"Invalid enum value (.+)", r"there is no such choice as \1"),
        (r"Expected str matching regex (.+)", r"must match the pattern \1"),
        (r"Number out of range", "must be closer to 0"),
    )
)
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string"}
KINDS |= {"array": "an array", "object": "an object"}  # what msgspec calls a type, and what people do


def in_plain_words(problem: str) -> str:
    """What msgspec says of a value, as a person would. That a value may be left out as null is no news to either."""
    if wrong := re.fullmatch(r"Expected ([a-z |]+), got \w+", problem):
        kinds = [KINDS[kind] for kind in wrong[1].split(" | ") if kind in KINDS]
        return f"must be {' or '.join(kinds)}" if kinds else problem
    for pattern, words in PLAIN_WORDS:
        if match := pattern.fullmatch(problem):
            return match.expand(words)
    return problem


def refused_value(error: msgspec.ValidationError) -> TrackerError:
    """msgspec's "Expected `int`, got `str` - at `$.requests[3].project`" as a refusal of requests[3].project."""
    problem, _, path = str(error).partition(" - at `")
    if missing := re.match(r"Object missing required field `(.*)`", problem):
        problem, path = "is required", f"{path.rstrip('`')}.{missing[1]}" if path else f"$.{missing[1]}"
    name, problem = path.rstrip("`").removeprefix("$").removeprefix("."), problem.replace("`", "")
    if problem.endswith(", got null") and name and not name.endswith("]"):
        problem = "is required"
    if name.startswith("["):  # "[...]" is a place in what has no names of its own
        name = "body" if name == "[...]" else f"requests{name}"
    return TrackerError("invalid", in_plain_words(problem), name or "body")


def convert(values: Any, kind: Any, strict: bool = True) -> Any:
    """The values as `kind`; not `strict`: numbers may be given as texts. Refuses what is none, naming the field."""
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise refused_value(error) from None


def decode(body: bytes, kind: Any) -> Any:
    """The JSON body as `kind`, whatever its content type said. Refuses anything else, naming the field.

    A null is as good as nothing: clients send one for what they have not got. So an optional field gets its default,
    a required one is missing, and a body that is null is one without fields. Free JSON keeps its nulls.

    A number like 20.0 is a whole one, as JSON Schema has it.

    Of a kind that is `as_printed`, texts may be whatever a script prints: U+FFFD stands for what no text may have.
    """
    body = body.removeprefix(codecs.BOM_UTF8)  # which some editors and shells write
    if not getattr(kind, "as_printed", False):
        return decode_as_it_is(body, kind)
    if body.isascii():  # nearly every one is fine, and read once
        with contextlib.suppress(TrackerError):
            return decode_as_it_is(body, kind)
    return decode_as_it_is(body if is_json(body) else mended(body), kind)


def decode_as_it_is(body: bytes, kind: Any) -> Any:
    """The JSON as `kind`, of which nothing is mended."""
    if len(body) > FEW_PARTS and is_free(kind):
        refuse_many_parts(body)
    if b"null" in body:  # or else there is none: a task that has none is decoded no slower
        body, kind = b"{}" if body.strip() == b"null" else body, with_nulls(kind)
    try:
        try:
            value = msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error):
                raise
            value = msgspec.json.decode(with_whole_numbers(body), type=kind)
    except msgspec.ValidationError as error:
        raise refused_value(error) from None
    except RecursionError:
        raise TrackerError("invalid", "nested too deeply", "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TrackerError("invalid", unreadable(body, error), "body") from None
    if b"\\u0000" in body:
        refuse_nul(value)
    return value


A_FORM = re.compile(rb"--|[\w.%+\[\]-]{1,100}=")  # what `curl -F` or `-d a=b` sends, and a library that is given fields
NOT_A_NUMBER = re.compile(rb"[:\[,]\s*-?(?:NaN|Infinity)\b")  # which Python writes for a number that is none
HALF_A_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}[^\\]")  # where a text was cut in an emoji


def unreadable(body: bytes, error: Exception) -> str:
    """What is said of a body that is no JSON: what it is instead, where that can be told; else where it is broken."""
    if not body.strip():
        return "not valid JSON: it is empty"
    if b"\0" in body[:4]:
        return "not valid JSON: it is UTF-16 or the like, and must be UTF-8"
    if A_FORM.match(body):
        return "not valid JSON: it looks like a form, and must be a JSON object"
    if NOT_A_NUMBER.search(body):
        return "not valid JSON: NaN and Infinity are no numbers there"
    if str(error) == "Input data was truncated" and HALF_A_PAIR.search(body):
        return "not valid JSON: a text in it ends with half of a surrogate pair"
    return f"not valid JSON: {error}"


def with_whole_numbers(body: bytes) -> bytes:
    """The same JSON, in which 20.0 is 20."""

    def whole(value: Any) -> Any:
        if isinstance(value, float):
            return int(value) if value.is_integer() and abs(value) < 2**64 else value
        if isinstance(value, dict):
            return {name: whole(inner) for name, inner in value.items()}
        return [whole(inner) for inner in value] if isinstance(value, list) else value

    refuse_many_parts(body)
    return encode(whole(msgspec.json.decode(body)))


@functools.cache
def with_nulls(kind: Any) -> Any:
    """The same type, where optional fields of Structs may be null. What is decoded is of the type itself all the same.

    A Struct may say in `null_means` what a null stands for that is not the field's default: with UNSET, for nothing.
    """
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return struct_with_nulls(kind)
    if not (parts := typing.get_args(kind)) or typing.get_origin(kind) is typing.Literal:
        return kind
    if notes := getattr(kind, "__metadata__", ()):
        return typing.Annotated[(with_nulls(kind.__origin__), *notes)]
    parts = tuple(map(with_nulls, parts))
    return typing.Union[parts] if typing.get_origin(kind) in UNIONS else typing.get_origin(kind)[parts]  # noqa: UP007


UNIONS = (typing.Union, types.UnionType)


def struct_with_nulls(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A subclass of the Struct that puts what a null means into its place."""
    fields: list[tuple] = []
    meant = {field.name: default_of(field) for field in msgspec.structs.fields(kind) if not field.required}
    for field in msgspec.structs.fields(kind):
        inner = with_nulls(field.type)
        if field.required:
            fields.append((field.name, inner))
        else:
            fields.append((field.name, inner if has_nulls(field.type) else inner | None, meant[field.name]))
    for base in reversed(kind.__mro__):
        meant |= vars(base).get("null_means", {})

    def __post_init__(self: msgspec.Struct) -> None:
        for name, meaning in meant.items():
            if getattr(self, name) is None:
                if meaning is msgspec.NODEFAULT:
                    raise ValueError(f"Object missing required field `{name}`")
                setattr(self, name, copy.copy(meaning))
        if counts := getattr(kind, "__post_init__", None):
            counts(self)

    space = {"__post_init__": __post_init__}
    return msgspec.defstruct(kind.__name__, fields, bases=(kind,), namespace=space, kw_only=True)


def has_nulls(kind: Any) -> bool:
    """Whether a null is a value of this type."""
    try:
        msgspec.json.decode(b"null", type=kind)
    except msgspec.ValidationError:
        return False
    return True


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def is_json(body: bytes) -> bool:
    """Whether it is JSON, and of texts that can be stored. Nothing is made of it: it may be of a million values."""
    try:
        body.decode()
        msgspec.json.decode(body, type=Raw)
        return b"\\u0000" not in body
    except UNREADABLE:
        return False


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


NO_NUMBER = Raw(b"1e999")  # of any type that has no such: it is refused by its field's name


def mended(body: bytes, no_number: Raw | None = NO_NUMBER) -> bytes:
    """The JSON of a program that knows little of it: of scripts' bytes, control characters, halves of surrogates.

    `no_number` stands for NaN, which Python writes and JavaScript does not, and for what is too large.
    """

    def number(text: str) -> float | Raw | None:
        return value if math.isfinite(value := float(text)) else no_number

    def whole(digits: str) -> Raw:  # of any length, as it is
        return Raw(digits.encode())

    try:
        return encode(forgiven(body, parse_constant=number, parse_float=number, parse_int=whole))
    except (ValueError, RecursionError, OverflowError, TrackerError):
        return body  # decode() says what is wrong with it


def forgiven(body: bytes, **numbers: Callable[[str], Any]) -> Any:
    """What such a program meant: U+FFFD stands for what no text may have. ValueError, RecursionError: nothing."""
    refuse_many_parts(body)
    return storable(json.loads(body.decode("utf-8-sig", "replace"), strict=False, **numbers))


MOST_PARTS = 100_000  # lists, objects and names of free JSON: each million of them holds up everybody for a moment
FEW_PARTS = 2**16  # bytes: so few cannot have that many
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)  # also one that never ends
SOME_STRINGS = re.compile(rb'(?:[^"]++|%b){1,1000}+' % STRING.pattern, re.DOTALL)


@functools.cache
def is_free(kind: Any) -> bool:
    """Whether some of it is JSON of any form."""
    return "AnyType" in repr(msgspec.inspect.type_info(kind))


def refuse_many_parts(body: bytes) -> None:
    """Refuses (too_large) JSON of so many parts that to make something of them takes long: nobody else runs meanwhile.

    Looks at the texts in it only when there may be so many outside of them, and lets others run.
    """
    if count_parts(body) <= MOST_PARTS:
        return
    found = 0
    for some in SOME_STRINGS.finditer(body):
        found += count_parts(STRING.sub(b"", some[0]))
        if found > MOST_PARTS:
            try:
                msgspec.json.decode(body, type=Raw)
            except RecursionError:
                raise TrackerError("invalid", "nested too deeply", "body") from None
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass
            raise TrackerError("too_large", f"more than {MOST_PARTS} lists, objects and names", "body")
        time.sleep(0)


def count_parts(text: bytes) -> int:
    """The lists, objects and names that begin in JSON, and what looks like such in its texts."""
    return text.count(b"[") + text.count(b"{") + text.count(b":")


def read_printed(free: Raw, name: str) -> tuple[str, Any]:
    """The text of free JSON and what it is; as it is mended where nothing can be made of it. Refuses what is none."""
    try:
        return bytes(free).decode(), msgspec.json.decode(free)
    except UNREADABLE:
        body = mended(bytes(free), None)
    try:
        return body.decode(), msgspec.json.decode(body)
    except UNREADABLE:
        raise TrackerError("invalid", "not valid JSON", name) from None


def storable(value: Any) -> Any:
    """JSON as it can be stored: U+FFFD stands for each NUL character, and for each half of a surrogate pair."""
    if isinstance(value, str):
        return re.sub("[\0\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [storable(one) for one in value]
    if isinstance(value, dict):
        return {storable(name): storable(one) for name, one in value.items()}
    return value


MOST_NESTED = 200  # lists and objects in one another that are looked into: far from where Python's stack ends


def refuse_nul(value: Any, name: str = "", within: tuple[str | int, ...] = ()) -> None:
    """SQLite's text functions stop at a NUL character; JSON can only carry one as an escape, so this runs rarely.

    `within`: the names and the indices that lead to the value. They become a text only where something is refused: in
    a name of a million characters there may be a million values.
    """
    if len(within) > MOST_NESTED:
        raise TrackerError("invalid", "nested too deeply", re.split("[.[]", place_of(name, within))[0])
    if isinstance(value, str) and "\0" in value:
        raise TrackerError("invalid", "must not contain a NUL character", place_of(name, within))
    if isinstance(value, list):
        for index, item in enumerate(value):
            refuse_nul(item, name, (*within, index))
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str) and "\0" in key:
                place = place_of(name, within)
                raise TrackerError("invalid", "must not contain a NUL character", place + ": " * bool(place) + "a name")
            refuse_nul(item, name, (*within, f"{key}"))


def place_of(name: str, within: tuple[str | int, ...]) -> str:
    """What is within something of that name, as a refusal names it: requests[3].recipe. What has none is `requests`."""
    begins = "requests" if within and not name and isinstance(within[0], int) else name
    steps = (f".{step}" if isinstance(step, str) else f"[{step}]" for step in within)
    return "".join((begins, *steps)).lstrip(".")


encode = msgspec.json.Encoder().encode


# Forms

FORM_PIECE = 2**14  # bytes of a form that are unquoted before others run


def form_pairs(form: bytes, most: int) -> list[tuple[str, str]]:
    """The fields of a form or of a query, empty ones too. ValueError: it has more than so many, or is no UTF-8.

    Like urllib's parse_qsl, which holds up everybody for half a second over 4 MB.
    """
    if form.count(b"&") >= most:
        raise ValueError("Max number of fields exceeded")
    pairs = (pair.partition(b"=") for pair in form.split(b"&") if pair)
    return [(unquoted(name), unquoted(value)) for name, _, value in pairs]


def unquoted(text: bytes) -> str:
    """What a form's text stands for. Refuses (ValueError) what is no UTF-8."""
    text, pieces, at = text.replace(b"+", b" "), [], 0
    while at < len(text):
        end = at + FORM_PIECE
        cut = text.rfind(b"%", end - 2, end)  # what it escapes may not be whole
        end = cut if cut > at else end
        pieces.append(unquote_to_bytes(text[at:end]))
        at = end
        if at < len(text):
            time.sleep(0)
    return b"".join(pieces).decode()


@functools.cache
def columns_of(kind: type[msgspec.Struct]) -> list[tuple[str, Callable[[Any], Any]]]:
    """The fields of a Struct, and how each is made of a column: booleans are numbers there, and JSON is text.

    Without those that not every answer has: they are given by whoever means to show them, as a secret is once.
    """
    made = {msgspec.inspect.BoolType: bool}
    made |= dict.fromkeys((msgspec.inspect.ListType, msgspec.inspect.DictType, msgspec.inspect.AnyType), as_raw)
    optional = {field.name for field in msgspec.structs.fields(kind) if field.default is UNSET}
    fields = (field for field in msgspec.inspect.type_info(kind).fields if field.name not in optional)
    return [(field.name, made.get(plain_type(field.type), unchanged)) for field in fields]


def plain_type(kind: Any) -> type:
    """The type behind what is said of it; of alternatives the first one."""
    while isinstance(kind, msgspec.inspect.Metadata | msgspec.inspect.UnionType):
        kind = kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind.types[0]
    return type(kind)


def as_raw(text: str | None) -> Raw | None:
    """A column that holds JSON, as it is."""
    return None if text is None else Raw(text.encode())


def unchanged(value: Any) -> Any:
    """What makes of a value what it is."""
    return value


@functools.cache
def columns_among(
    kind: type[msgspec.Struct], without: tuple[str, ...], *names: str
) -> list[tuple[str, int, Callable[[Any], Any]]]:
    """Those of columns_of that are among these columns of a row, each with its place there."""
    return [(name, names.index(name), make) for name, make in columns_of(kind) if name in names and name not in without]


def shaped(kind: type[Shape], row: sqlite3.Row, **given: Any) -> Shape:
    """A row as the API shows it: what is not `given` comes from the columns of the same names, where there are such."""
    for name, at, make in columns_among(kind, tuple(given), *row.keys()):
        given[name] = row[at] if make is unchanged else make(row[at])
    return kind(**given)


def given_fields(body: msgspec.Struct) -> dict[str, Any]:
    """The fields that a body has brought."""
    return {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}
