"""What this program takes from uvicorn and aiosqlite beyond what they promise, looked for once: when it is imported.

Without a name in NEEDED it refuses to be imported, in a line that says which one is missing. Without one in SHORT_WAY
answers are written as ASGI has it, which takes longer and needs none of these.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect

NEEDED = {
    "uvicorn.server:Server": (
        "startup main_loop on_tick shutdown handle_exit capture_signals servers server_state should_exit force_exit"
    ),
    "uvicorn.server:ServerState": "connections tasks",
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol": (
        "connection_made connection_lost data_received on_message_begin on_headers_complete on_message_complete"
        " on_header on_body on_response_complete _start_asgi_task shutdown loop transport flow parser cycle pipeline"
        " connections scope expect_100_continue"
    ),
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle": (
        "transport response_started response_complete keep_alive disconnected message_event"
    ),
    "uvicorn.protocols.http.flow_control:FlowControl": (
        "pause_reading resume_reading read_paused write_paused _transport"
    ),
    "aiosqlite:Connection": "_conn _execute stop",
}
SHORT_WAY = {
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle": (
        "scope flow access_log keep_alive disconnected default_headers response_started message_event on_response send"
        " chunked_encoding expected_content_length waiting_for_100_continue"
    ),
    "uvicorn.protocols.http.flow_control:FlowControl": "write_paused drain",
}


def missing(wanted: dict[str, str]) -> str:
    """A sentence about the first of these names that is not there; empty when all of them are."""
    for place, names in wanted.items():
        module, _, kind = place.partition(":")
        try:
            known = names_in(getattr(importlib.import_module(module), kind))
        except (ImportError, AttributeError) as error:
            return str(error)
        for name in names.split():
            if name not in known:
                return f"{place} has no {name}"
    return ""


def names_in(kind: type) -> set[str]:
    """The attributes of a class, and what its methods mention: what they set, but cheaper to find out."""
    methods = filter(inspect.isfunction, vars(kind).values())
    return set(dir(kind)).union(*(method.__code__.co_names for method in methods))


if problem := missing(NEEDED):
    versions = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("uvicorn", "aiosqlite"))
    raise ImportError(f"This tracker cannot use {versions}: {problem}. Install what pyproject.toml names.")
HAS_SHORT_WAY = not missing(SHORT_WAY)
