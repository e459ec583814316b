"""Clients of the Testflinger dialect: their keys, tokens, limits and secrets, and what they are refused."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from place import Queue

import errors
import protocol
import tracker
from dialects.testflinger import clients as clients
from dialects.testflinger.clients import ACCESS_LIFETIME, REFRESH_LIFETIME, Client, LimitsBody, PermissionsBody
from tracker import TrackerError

INVALID, EXPIRED = "forbidden: Invalid token", "unauthorized: Token has expired"
WRONG_KEY = "unauthorized: Invalid client_id or client_key"
NO_KEY = "unauthorized: client_id and client_key are required"
CHOSEN = "a key that was chosen"
PLAIN = Client("plain", "contributor", {}, [], {})
ADMIN = Client("boss", "admin", {}, [], {})


class Clients(Queue):
    """A database with a client `alice`, her key, and the verbs of those who use clients."""

    def __init__(self) -> None:
        super().__init__()
        self.key = self.create("alice")

    def create(self, client: str, **fields: Any) -> str:
        """The key of a new client."""
        return self.do(clients.create_client, self.session, client_body(client, **fields))[1]

    def update(self, client: str = "alice", **fields: Any) -> None:
        self.do(clients.update_client, self.session, client, LimitsBody(**fields))

    def token(self, client: str = "alice", key: str | None = None) -> str:
        return self.do(clients.issue_token, basic(client, key or self.key)).access_token

    def refreshing(self) -> str:
        return self.do(clients.issue_token, basic("alice", self.key), True).refresh_token

    def authenticate(self, authorization: bytes | None) -> Client | None:
        return self.do(clients.authenticate, authorization)

    def refused(self, authorization: bytes | str) -> str:
        """The refusal of a token, or of a whole header."""
        return self.refusal(clients.authenticate, bearer(authorization))

    def forged(self, signing_key: bytes | str | None = None, algorithm: str = "HS256", **claims: Any) -> str:
        """Alice's token with some claims, the algorithm or the key replaced."""
        original = jwt.decode(self.token(), options={"verify_signature": False})
        ((own,),) = self.values("SELECT value FROM meta WHERE key = 'testflinger_key'")
        return jwt.encode({**original, **claims}, own if signing_key is None else signing_key, algorithm)

    def create_queue(self, name: str) -> int:
        """The id of a new queue of Testflinger's."""
        project = self.create_project(name)
        self.do(lambda tx: tx.execute("INSERT INTO testflinger_queue (project) VALUES (?)", (project,)) and None)
        return project


@pytest.fixture
def place() -> Clients:
    return Clients()


def client_body(client: str, **fields: Any) -> clients.ClientBody:
    return tracker.decode(tracker.encode({"client_id": client, **fields}), clients.ClientBody)


def basic(client: str, key: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{client}:{key}".encode())


def bearer(token: bytes | str) -> bytes:
    return token if isinstance(token, bytes) else b"Bearer " + token.encode()


def client(**fields: Any) -> Client:
    return PLAIN._replace(**fields)


# ── Credentials and tokens ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("header", [None, b"", b"  "])
def test_no_credentials_are_no_client(place: Clients, header: bytes | None) -> None:
    assert place.authenticate(header) is None


def test_a_client_comes_with_its_key_with_a_bearer_token_or_with_a_bare_one(place: Clients) -> None:
    token = place.token().encode()
    for header in (basic("alice", place.key), b"Bearer " + token, b"bearer  " + token, token):
        assert place.authenticate(header).id == "alice"


def test_a_key_may_contain_colons(place: Clients) -> None:
    body = clients.NewPermissionsBody(client_id="bob", client_secret="one:two:three")
    place.do(clients.create_permissions, ADMIN, body)
    assert place.authenticate(basic("bob", "one:two:three")).id == "bob"


def test_authenticating_only_reads(place: Clients) -> None:
    headers = [bearer(place.token()), basic("alice", place.key)]
    place.connection.execute("PRAGMA query_only = ON")
    tx = tracker.Tx(place.connection, place.clock, place.settings)
    assert all(clients.authenticate(tx, header) for header in headers)


@pytest.mark.parametrize(
    "header",
    [
        b"Basic",
        b"Basic ",
        b"Basic !!!!",
        b"Basic " + base64.b64encode(b"alice"),
        b"Basic " + base64.b64encode(b"\xff\xfe:\xff"),
        "Basic ünïcode".encode(),
    ],
)
def test_what_is_no_id_and_key_is_refused(place: Clients, header: bytes) -> None:
    assert place.refused(header).startswith(NO_KEY)
    assert place.refusal(clients.issue_token, header).startswith(NO_KEY)


def test_wrong_ids_and_keys_are_refused_alike(place: Clients) -> None:
    other = place.create("bob")
    for pair in (
        ("alice", "wrong"),
        ("alice", other),
        ("nobody", place.key),
        ("", ""),
        ("alice", ""),
        ("ä", "ö" * 9999),
    ):
        assert place.refused(basic(*pair)) == WRONG_KEY
        assert place.refusal(clients.issue_token, basic(*pair)) == WRONG_KEY


def test_a_token_is_issued_for_a_key_and_not_for_a_token(place: Clients) -> None:
    assert place.refusal(clients.issue_token, bearer(place.token())).startswith(NO_KEY)
    assert place.refusal(clients.issue_token, None).startswith(NO_KEY)


def test_another_kind_of_credentials_is_refused(place: Clients) -> None:
    assert place.refused(b"Digest username=alice").startswith("unauthorized: Authorization: must be Bearer")


def test_a_token_expires_by_the_clock_of_the_tracker(place: Clients) -> None:
    token = place.token()
    place.clock.now += ACCESS_LIFETIME - 1
    assert place.authenticate(bearer(token)).id == "alice"
    place.clock.now += 1
    assert place.refused(token) == "unauthorized: Token has expired"


def test_what_a_client_may_changes_at_once(place: Clients) -> None:
    token = place.token()
    place.update(role="agent", allowed_queues=["lab"])
    now = place.authenticate(bearer(token))
    assert (now.role, now.allowed_queues) == ("agent", ["lab"])


def test_claims_give_nothing_that_the_database_does_not(place: Clients) -> None:
    more = {"client_id": "alice", "role": "admin", "max_priority": {"*": 99}, "allowed_queues": ["lab"]}
    assert place.authenticate(bearer(place.forged(permissions=more)))[1:5] == ("contributor", {}, [], {})


def test_a_token_ends_with_its_client_even_if_another_gets_its_name(place: Clients) -> None:
    token = place.token()
    place.do(clients.delete_client, place.session, "alice")
    assert place.refused(token).startswith(INVALID)
    place.create("alice")
    assert place.refused(token).startswith(INVALID)


def test_a_new_key_ends_the_old_one_and_all_its_tokens(place: Clients) -> None:
    token, refresh = place.token(), place.refreshing()
    key = place.do(clients.rotate_key, place.session, "alice")
    assert place.refused(token).startswith(INVALID)
    assert place.refused(basic("alice", place.key)) == WRONG_KEY
    assert place.refusal(clients.refresh_token, refresh).startswith("invalid")
    assert place.authenticate(bearer(place.token(key=key))).id == "alice"


@pytest.mark.parametrize(
    ("algorithm", "signing_key"), [("none", ""), ("HS256", b"another key" * 9), ("HS512", None), ("HS384", None)]
)
def test_a_token_that_is_signed_otherwise_is_invalid(
    place: Clients, algorithm: str, signing_key: bytes | str | None
) -> None:
    if signing_key is None:  # the right one, which HS512 finds too short
        place.do(lambda tx: tracker.load_meta(tx, "testflinger_key", lambda: bytes(range(64))) and None)
    assert place.refused(place.forged(signing_key, algorithm)) == INVALID


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "refresh_token"},
        {"exp": "never"},
        {"exp": None},
        {"exp": 1e400},
        {"permissions": {}},
        {"permissions": "alice"},
        {"permissions": {"client_id": 5}},
        {"key": "0" * 32},
        {"key": None},
        {"permissions": {"client_id": "bob"}},
    ],
)
def test_a_signed_token_with_other_claims_is_invalid(place: Clients, claims: dict[str, Any]) -> None:
    place.create("bob")
    assert place.refused(place.forged(**claims)).startswith(INVALID)


def test_a_token_whose_claims_were_tampered_with_is_invalid(place: Clients) -> None:
    head, claims, signature = place.token().split(".")
    changed = base64.urlsafe_b64decode(claims + "==").replace(b"contributor", b"admin")
    forged = base64.urlsafe_b64encode(changed).rstrip(b"=").decode()
    assert forged != claims
    assert place.refused(f"{head}.{forged}.{signature}") == INVALID
    assert place.refused(f"{head}.{claims}.") == INVALID
    assert place.refused(f"{head}.{claims}") == INVALID


@pytest.mark.parametrize("exp", [2**40, 1e300, 2**63])
def test_a_token_that_claims_to_live_longer_than_ours_do_is_refused(place: Clients, exp: float) -> None:
    """Whoever has read the database can sign one, and a new key ends what it can do."""
    assert place.refused(place.forged(exp=exp)).split(":")[0] in ("unauthorized", "forbidden")
    assert place.refused(place.forged(exp=int(place.clock.time()) + ACCESS_LIFETIME + 1)) == EXPIRED
    assert place.authenticate(bearer(place.forged(exp=int(place.clock.time()) + ACCESS_LIFETIME))).id == "alice"


def test_tokens_end_with_the_key_that_signed_them_and_clients_are_told_to_get_new_ones(place: Clients) -> None:
    token, forged, refresh = place.token(), place.forged(client_id="bob"), place.refreshing()
    for _ in range(2):
        place.do(clients.rotate_signing_key, place.session)
        assert place.refused(place.token()[:-9]) == INVALID
    token = place.token()
    place.do(clients.rotate_signing_key, place.session)
    assert place.refused(token) == EXPIRED
    assert place.refused(forged) == INVALID  # of a key that is older still
    assert place.authenticate(bearer(place.token())).id == "alice"
    assert place.authenticate(bearer(place.do(clients.refresh_token, refresh).access_token)).id == "alice"


def test_only_an_admin_replaces_the_signing_key(place: Clients) -> None:
    plain = place.create_manager("plain")
    for session, code in (plain, "forbidden"), (None, "unauthorized"):
        assert place.refusal(clients.rotate_signing_key, session).startswith(code)


def test_a_forged_token_is_invalid_rather_than_expired(place: Clients) -> None:
    assert place.refused(place.forged(b"another key" * 9, exp=1)) == INVALID


@pytest.mark.parametrize(
    "token",
    [
        b"Bearer",
        b"Bearer ",
        b"None",
        b"..",
        b"." * 60_000,
        b"x" * 5_000_000,
        b"\x00\xff.\xfe.\xfd",
        "Bearer ünïcode.ünïcode.ünïcode".encode(),
        base64.urlsafe_b64encode(b"[" * 30_000) + b".e30.AAAA",
        base64.urlsafe_b64encode(b'{"alg":' + b'{"a":' * 9000) + b".e30.AAAA",
        base64.urlsafe_b64encode(b'{"alg":["HS256"]}  ').rstrip(b"=") + b".e30.AAAA",
        base64.urlsafe_b64encode(b'{"alg":' + b"9" * 9000 + b"}") + b".e30.AAAA",
    ],
    ids=range(12),
)
def test_what_is_no_token_is_invalid(place: Clients, token: bytes) -> None:
    place.token()
    assert place.refused(token) == INVALID


def test_before_the_first_token_was_issued_none_is_valid(place: Clients) -> None:
    claims = {"exp": 2**40, "sub": "access_token", "key": "", "permissions": {"client_id": "alice"}}
    assert place.refused(jwt.encode(claims, b"\0" * 32)) == INVALID
    assert place.values("SELECT 1 FROM meta WHERE key = 'testflinger_key'") == []


def test_the_time_of_use_is_noted_when_a_token_is_issued_and_is_due_again_later(place: Clients) -> None:
    assert place.authenticate(basic("alice", place.key)).stale
    token = place.token()
    assert not place.authenticate(bearer(token)).stale
    place.clock.now += clients.LAST_USED_STEP
    assert place.authenticate(bearer(token)).stale
    place.do(clients.note_use, "alice")
    assert place.do(clients.find_client, place.session, "alice")["last_used"] == place.clock.time()


# ── Refresh tokens ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refresh_token_gives_access_tokens_until_it_expires(place: Clients) -> None:
    refresh = place.refreshing()
    place.clock.now += REFRESH_LIFETIME - 1
    fresh = place.do(clients.refresh_token, refresh)
    assert (fresh.refresh_token, fresh.expires_in) == (refresh, ACCESS_LIFETIME)
    assert place.authenticate(bearer(fresh.access_token)).id == "alice"
    place.clock.now += 1
    assert place.refusal(clients.refresh_token, refresh).startswith("invalid: refresh_token")


def test_a_revoked_refresh_token_is_refused_and_can_be_revoked_again(place: Clients) -> None:
    refresh, other = place.refreshing(), place.refreshing()
    for _ in range(2):
        place.do(clients.revoke_token, refresh)
    assert place.refusal(clients.refresh_token, refresh).startswith("invalid: refresh_token")
    assert place.do(clients.refresh_token, other).access_token


def test_a_refresh_token_is_no_access_token_nor_the_other_way_round(place: Clients) -> None:
    assert place.refused(place.refreshing()) == INVALID
    assert place.refusal(clients.refresh_token, place.token()).startswith("invalid")


def test_a_refresh_token_ends_with_its_client(place: Clients) -> None:
    refresh = place.refreshing()
    place.do(clients.delete_client, place.session, "alice")
    place.create("alice")
    assert place.refusal(clients.refresh_token, refresh).startswith("invalid")


def test_a_client_that_cannot_refresh_gets_no_refresh_token(place: Clients) -> None:
    assert place.do(clients.issue_token, basic("alice", place.key)).refresh_token is None
    assert place.values("SELECT 1 FROM testflinger_refresh") == []


def test_of_too_many_refresh_tokens_the_oldest_goes(place: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MOST_REFRESH", 3)
    issued = []
    for _ in range(4):
        issued.append(place.refreshing())
        place.clock.now += 1
    assert place.refusal(clients.refresh_token, issued[0]).startswith("invalid")
    assert all(place.do(clients.refresh_token, token) for token in issued[1:])


def test_expired_refresh_tokens_are_pruned_in_pieces(place: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PRUNED_TOKENS", 2)
    for _ in range(3):
        place.refreshing()
    place.clock.now += REFRESH_LIFETIME
    valid = place.refreshing()
    assert [place.do(clients.prune_refresh) for _ in range(2)] == [True, False]
    assert place.values("SELECT hash FROM testflinger_refresh") == [(tracker.digest(valid.encode()),)]


def test_neither_keys_nor_tokens_are_in_the_database(place: Clients) -> None:
    access, refresh = place.token(), place.refreshing()
    dump = "\n".join(place.connection.iterdump())
    for secret in (place.key, access, refresh):
        assert secret not in dump and secret.encode().hex() not in dump.lower()


# ── What a submission needs ───────────────────────────────────────────────────────────────────────────────────────────

HOUR = 3600


def check(place: Clients, caller: Client | None, restricted: bool = False, priority: int = 0, hours: float | None = 0):
    reservation = None if hours is None else hours * HOUR
    place.do(clients.check_submission, caller, "lab", restricted, priority, reservation)


def refusal(place: Clients, *args: Any, **fields: Any) -> str:
    with pytest.raises(TrackerError) as caught:
        check(place, *args, **fields)
    return f"{caught.value.code}: {caught.value.message}"


@pytest.mark.parametrize("caller", [None, PLAIN])
def test_an_ordinary_job_needs_nothing(place: Clients, caller: Client | None) -> None:
    check(place, caller, hours=None)
    check(place, caller, hours=6)


@pytest.mark.parametrize("limits", [{"*": 5}, {"lab": 5}, {"*": 5, "lab": 2}, {"*": 2, "lab": 5}])
def test_a_priority_needs_the_larger_maximum_of_its_queue_and_of_all(place: Clients, limits: dict[str, int]) -> None:
    check(place, client(max_priority=limits), priority=5)
    assert "job_priority: 6 is more than 5" in refusal(place, client(max_priority=limits), priority=6)


def test_the_maximum_for_another_queue_does_not_count(place: Clients) -> None:
    assert refusal(place, client(max_priority={"other": 5}), priority=1).startswith("forbidden: job_priority")
    assert refusal(place, client(allowed_queues=["other"]), restricted=True).startswith("forbidden: job_queue")
    assert refusal(place, client(max_reservation_time={"other": 99999}), hours=7).startswith("forbidden: reserve_data")


def test_a_priority_below_zero_needs_a_client_and_no_maximum(place: Clients) -> None:
    check(place, PLAIN, priority=-5)
    assert refusal(place, None, priority=-5).startswith("unauthorized: job_priority: -5")


def test_a_restricted_queue_must_be_allowed(place: Clients) -> None:
    check(place, client(allowed_queues=["lab"]), restricted=True)
    assert refusal(place, PLAIN, restricted=True).startswith("forbidden: job_queue: lab is restricted")


@pytest.mark.parametrize("limits", [{"*": 9 * HOUR}, {"lab": 9 * HOUR, "*": 1}])
def test_a_long_reservation_needs_a_maximum(place: Clients, limits: dict[str, int]) -> None:
    check(place, client(max_reservation_time=limits), hours=9)
    assert "32401 s is more than 32400 s" in refusal(place, client(max_reservation_time=limits), hours=9 + 1 / HOUR)


def test_a_maximum_below_six_hours_takes_nothing_away(place: Clients) -> None:
    check(place, client(max_reservation_time={"*": 60}), hours=6)
    assert "is more than 21600 s" in refusal(place, client(max_reservation_time={"*": 60}), hours=7)


def test_without_a_client_nothing_special_is_possible(place: Clients) -> None:
    for special in ({"priority": 1}, {"restricted": True}, {"hours": 7}):
        assert refusal(place, None, **special).startswith("unauthorized: ")


def test_permissions_are_checked_in_order(place: Clients) -> None:
    everything = {"priority": 5, "restricted": True, "hours": 7}
    caller = PLAIN
    for field, more in (
        ("job_priority", {"max_priority": {"*": 5}}),
        ("job_queue", {"allowed_queues": ["lab"]}),
        ("reserve_data.timeout", {"max_reservation_time": {"*": 9 * HOUR}}),
    ):
        assert refusal(place, caller, **everything).startswith(f"forbidden: {field}: ")
        caller = caller._replace(**more)
    check(place, caller, **everything)


# ── Managers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MANAGING: list[tuple[Callable, tuple]] = [
    (clients.list_clients, ()),
    (clients.find_client, ("alice",)),
    (clients.create_client, (client_body("bob"),)),
    (clients.update_client, ("alice", LimitsBody(role="admin"))),
    (clients.rotate_key, ("alice",)),
    (clients.delete_client, ("alice",)),
    (clients.set_restricted, (1, True)),
]


@pytest.mark.parametrize(("function", "args"), MANAGING, ids=[function.__name__ for function, _ in MANAGING])
def test_only_a_tracker_admin_manages_clients(place: Clients, function: Callable, args: tuple) -> None:
    manager = place.create_manager("other", tracker.ALL_ROLES)
    assert place.refusal(function, manager, *args).startswith("forbidden: Only a tracker admin")
    assert place.refusal(function, None, *args) == "unauthorized: Please log in"


def test_a_new_client_has_no_rights_but_those_that_it_was_given(place: Clients) -> None:
    place.create("bob", max_priority={"*": 1}, role="agent")
    listed = place.do(clients.list_clients, place.session)
    assert [one["client_id"] for one in listed] == ["alice", "bob"]
    assert listed[0] == {
        **{"client_id": "alice", "role": "contributor"},
        **{"max_priority": {}, "allowed_queues": [], "max_reservation_time": {}},
        **{"created": place.clock.START, "last_used": None, "username": "admin", "secret_count": 0},
    }
    assert (listed[1]["role"], listed[1]["max_priority"]) == ("agent", {"*": 1})


def test_a_change_leaves_what_it_does_not_name(place: Clients) -> None:
    place.update(max_priority={"lab": 3}, allowed_queues=["lab", "lab", "attic"])
    place.update(role="admin", max_priority={})
    changed = place.do(clients.find_client, place.session, "alice")
    assert (changed["role"], changed["max_priority"], changed["allowed_queues"]) == ("admin", {}, ["lab", "attic"])


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a/b", "..", "é", "a\n", "x" * 201])
def test_a_name_that_fits_in_no_path_or_header_is_refused(name: str) -> None:
    with pytest.raises(TrackerError, match="client_id: "):
        client_body(name)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"role": "root"}, "role"),
        ({"max_priority": {"lab": -1}}, "max_priority"),
        ({"max_priority": {"lab": "5"}}, "max_priority"),
        ({"max_priority": {" ": 5}}, "max_priority"),
        ({"max_priority": {"lab": 2**31}}, "max_priority"),
        ({"max_reservation_time": {"x" * 201: 5}}, "max_reservation_time"),
        ({"allowed_queues": "lab"}, "allowed_queues"),
        ({"allowed_queues": [5]}, "allowed_queues"),
        ({"allowed_queues": ["*"]}, "allowed_queues"),
        ({"allowed_queues": ["x" * 201]}, "allowed_queues"),
        ({"allowed_queues": [f"{number:0200}" for number in range(100)]}, "max_priority, allowed_queues"),
        ({"allowed_queue": ["lab"]}, "body: Object contains unknown field allowed_queue"),
    ],
)
def test_limits_that_make_no_sense_are_refused(place: Clients, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(TrackerError) as caught:
        place.create("bob", **fields)
    assert caught.value.code == "invalid" and caught.value.message.startswith(field)


def test_the_largest_limits_fit_in_a_header(place: Clients) -> None:
    place.update(allowed_queues=[f"{number:0200}" for number in range(clients.MOST_LIMITS // 204 - 1)])
    assert len(place.token()) < protocol.MOST_HEADER_BYTES / 2


def test_a_name_is_given_once(place: Clients) -> None:
    assert place.refusal(clients.create_client, place.session, client_body("alice")).startswith("conflict: client_id")


def test_the_number_of_clients_is_bounded(place: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MOST_CLIENTS", 2)
    place.create("bob")
    assert place.refusal(clients.create_client, place.session, client_body("carol")).startswith("conflict: client_id")


def test_a_key_that_has_been_replaced_meanwhile_is_not_replaced_again(place: Clients) -> None:
    old = place.do(clients.key_hash, place.session, "alice")
    place.do(clients.rotate_key, place.session, "alice", old)
    assert place.refusal(clients.rotate_key, place.session, "alice", old).startswith("conflict: ")


def test_a_refused_client_id_is_told_the_characters_that_it_may_have(place: Clients) -> None:
    said = place.refusal(clients.put_permissions, ADMIN, "Zoë", PermissionsBody(client_secret=CHOSEN))
    assert said.startswith("invalid: client_id: must have 1 to 200 of the characters A-Z a-z 0-9 _ . @ + -")


@pytest.mark.parametrize("function", [clients.find_client, clients.rotate_key, clients.delete_client])
def test_a_client_that_is_unknown_is_not_found(place: Clients, function: Callable) -> None:
    assert place.refusal(function, place.session, "nobody") == "not_found: No client nobody"


def test_a_manager_restricts_a_queue_and_no_other_project(place: Clients) -> None:
    queue = place.create_queue("lab")
    for restricted in (True, False):
        place.do(clients.set_restricted, place.session, queue, restricted)
        assert place.values("SELECT restricted FROM testflinger_queue") == [(restricted,)]
    assert place.refusal(clients.set_restricted, place.session, place.project, True).startswith("not_found")


# ── Admin clients ─────────────────────────────────────────────────────────────────────────────────────────────────────

NEW = clients.NewPermissionsBody(client_id="bob", client_secret=CHOSEN)
ADMINISTRATION: list[tuple[Callable, tuple]] = [
    (clients.list_permissions, ()),
    (clients.get_permissions, ("alice",)),
    (clients.create_permissions, (NEW,)),
    (clients.put_permissions, ("alice", PermissionsBody(role="admin"))),
    (clients.delete_permissions, ("alice",)),
    (clients.get_restricted_queue, ("lab",)),
    (clients.add_restricted_queue, ("lab",)),
    (clients.remove_restricted_queue, ("lab",)),
    (clients.put_secret, ("alice", "path", clients.SecretBody("x"))),
    (clients.delete_secret, ("alice", "path")),
]


@pytest.mark.parametrize(
    ("function", "args"), ADMINISTRATION, ids=[function.__name__ for function, _ in ADMINISTRATION]
)
def test_only_an_admin_client_administers(place: Clients, function: Callable, args: tuple) -> None:
    place.create_queue("lab")
    before = list(place.connection.iterdump())
    assert place.refusal(function, None, *args).startswith("unauthorized: ")
    for role in ("contributor", "agent"):
        assert place.refusal(function, client(role=role), *args).startswith("forbidden: Only an admin client")
    assert list(place.connection.iterdump()) == before


def test_an_admin_client_makes_a_client_with_a_key_that_it_chose(place: Clients) -> None:
    made = place.do(clients.create_permissions, ADMIN, NEW)
    assert made == place.do(clients.get_permissions, ADMIN, "bob")
    assert made in place.do(clients.list_permissions, ADMIN)
    assert place.authenticate(basic("bob", CHOSEN)).role == "contributor"
    for other in ({"client_secret": "another key that was chosen"}, {"role": "agent"}):
        body = errors.convert({"client_id": "bob", "client_secret": CHOSEN, **other}, clients.NewPermissionsBody)
        assert place.refusal(clients.create_permissions, ADMIN, body).startswith("conflict: client_id")


def test_a_client_that_is_made_a_second_time_is_the_one_that_there_is(place: Clients) -> None:
    made = place.do(clients.create_permissions, ADMIN, NEW)
    token = place.do(clients.issue_token, basic("bob", CHOSEN)).access_token
    assert place.do(clients.create_permissions, ADMIN, NEW) == made
    assert place.authenticate(bearer(token)).id == "bob"


def test_putting_makes_a_client_that_is_unknown_if_it_has_a_key(place: Clients) -> None:
    missing = place.refusal(clients.put_permissions, ADMIN, "bob", PermissionsBody(role="agent"))
    assert missing == "invalid: client_secret: is required"
    place.do(clients.put_permissions, ADMIN, "bob", PermissionsBody(role="agent", client_secret=CHOSEN))
    assert place.authenticate(basic("bob", CHOSEN)).role == "agent"
    strange = place.refusal(clients.put_permissions, ADMIN, "b:b", PermissionsBody(client_secret=CHOSEN))
    assert strange.startswith("invalid: client_id: ")


def test_putting_changes_what_it_names_and_the_key_if_it_has_one(place: Clients) -> None:
    put = clients.put_permissions
    token = place.token()
    changed = place.do(put, ADMIN, "alice", PermissionsBody(client_id="alice", max_priority={"*": 4}))
    assert place.authenticate(bearer(token)).max_priority == changed["max_priority"] == {"*": 4}
    place.do(put, ADMIN, "alice", PermissionsBody(client_secret=CHOSEN))
    assert place.authenticate(basic("alice", CHOSEN)).max_priority == {"*": 4}
    assert place.refused(token).startswith(INVALID)


def test_what_is_put_below_one_name_is_for_no_other(place: Clients) -> None:
    body = PermissionsBody(client_id="bob", role="admin")
    assert place.refusal(clients.put_permissions, ADMIN, "alice", body).startswith("invalid: client_id")


def test_a_short_key_is_refused() -> None:
    with pytest.raises(TrackerError, match="client_secret: "):
        tracker.decode(b'{"client_secret": "hunter2"}', PermissionsBody)


def test_an_admin_client_deletes_a_client(place: Clients) -> None:
    place.do(clients.delete_permissions, ADMIN, "alice")
    assert place.refused(basic("alice", place.key)) == WRONG_KEY
    assert place.refusal(clients.get_permissions, ADMIN, "alice") == "not_found: No client alice"


def test_restricted_queues_are_listed_with_the_clients_that_are_allowed_them(place: Clients) -> None:
    for queue in ("lab", "attic", "open"):
        place.create_queue(queue)
    for queue in ("lab", "attic", "lab"):
        place.do(clients.add_restricted_queue, ADMIN, queue)
    place.create("bob", allowed_queues=["lab", "open"])
    place.update(allowed_queues=["lab"])
    attic = {"name": "attic", "queue": "attic", "owners": []}
    lab = {"name": "lab", "queue": "lab", "owners": ["alice", "bob"]}
    assert place.do(clients.list_restricted_queues, ADMIN) == [attic, lab]
    assert place.do(clients.get_restricted_queue, ADMIN, "lab") == lab


def test_an_ordinary_project_is_not_restricted(place: Clients) -> None:
    with pytest.raises(TrackerError, match="queue"):
        place.do(clients.add_restricted_queue, ADMIN, "first")


def test_the_list_of_restricted_queues_is_also_for_contributors(place: Clients) -> None:
    place.do(clients.add_restricted_queue, ADMIN, "lab")
    for role in ("contributor", "manager", "admin"):
        assert place.do(clients.list_restricted_queues, client(role=role))[0]["name"] == "lab"
    assert place.refusal(clients.list_restricted_queues, client(role="agent")).startswith("forbidden: ")
    assert place.refusal(clients.list_restricted_queues, None).startswith("unauthorized: ")


def test_a_restricted_queue_is_allowed_to_the_client_that_is_named_and_taken_away_from_it(place: Clients) -> None:
    place.create("bob", allowed_queues=["attic"])
    for _ in range(2):
        shown = place.do(clients.add_restricted_queue, ADMIN, "lab", "bob")
        assert shown["owners"] == ["bob"]
    assert place.do(clients.get_permissions, ADMIN, "bob")["allowed_queues"] == ["attic", "lab"]
    for _ in range(2):
        place.do(clients.remove_restricted_queue, ADMIN, "lab", "bob")
        assert place.do(clients.get_restricted_queue, ADMIN, "lab")["owners"] == []
    for function in (clients.add_restricted_queue, clients.remove_restricted_queue):
        assert place.refusal(function, ADMIN, "lab", "nobody") == "not_found: No client nobody"


def test_a_manager_among_the_clients_administers_those_who_are_neither_managers_nor_admins(place: Clients) -> None:
    manager, change = client(id="lead", role="manager"), PermissionsBody(max_priority={"*": 4})
    for name, role in (("lead", "manager"), ("boss", "admin"), ("robot", "agent")):
        place.create(name, role=role)
    place.do(clients.create_permissions, manager, NEW)
    for name in ("bob", "alice", "robot"):
        assert place.do(clients.put_permissions, manager, name, change)["max_priority"] == {"*": 4}
        for role in ("manager", "admin"):
            promoted = PermissionsBody(role=role)
            assert place.refusal(clients.put_permissions, manager, name, promoted).startswith("forbidden: ")
        place.do(clients.delete_permissions, manager, name)
    for name in ("lead", "boss"):
        assert place.do(clients.get_permissions, manager, name)["role"] in ("manager", "admin")
        assert place.refusal(clients.put_permissions, manager, name, change).startswith("forbidden: ")
        assert place.refusal(clients.delete_permissions, manager, name).startswith("forbidden: ")
    for role in ("manager", "admin"):
        body = clients.NewPermissionsBody(client_id="new", client_secret=CHOSEN, role=role)
        assert place.refusal(clients.create_permissions, manager, body).startswith("forbidden: ")
        unknown = PermissionsBody(client_secret=CHOSEN, role=role)
        assert place.refusal(clients.put_permissions, manager, "new", unknown).startswith("forbidden: ")
    secret = clients.SecretBody("x")
    assert place.refusal(clients.put_secret, manager, "boss", "path", secret).startswith("forbidden: ")


def test_whom_to_ask_about_a_client_is_kept_and_is_no_part_of_its_token(place: Clients) -> None:
    body = PermissionsBody(client_secret=CHOSEN, email="bob@example.org")
    assert place.do(clients.put_permissions, ADMIN, "bob", body)["email"] == "bob@example.org"
    place.do(clients.put_permissions, ADMIN, "bob", PermissionsBody(max_priority={"*": 1}))
    assert place.do(clients.get_permissions, ADMIN, "bob")["email"] == "bob@example.org"
    token = place.do(clients.issue_token, basic("bob", CHOSEN)).access_token
    assert "email" not in jwt.decode(token, options={"verify_signature": False})["permissions"]


# ── Secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ALICE = client(id="alice")


def put(place: Clients, path: str, value: str, caller: Client | None = ALICE) -> None:
    place.do(clients.put_secret, caller, "alice", path, clients.SecretBody(value))


def refused_secret(place: Clients, path: str, value: str, caller: Client | None = ALICE, of: str = "alice") -> str:
    return place.refusal(clients.put_secret, caller, of, path, clients.SecretBody(value))


@pytest.mark.parametrize("caller", [ALICE, ADMIN])
def test_a_client_or_an_admin_keeps_replaces_and_deletes_its_secrets(place: Clients, caller: Client) -> None:
    for value in ("first", "second"):
        put(place, "ssh/key", value, caller)
    assert place.do(clients.secret_value, "alice", "ssh/key") == "second"
    assert place.do(clients.find_client, place.session, "alice")["secret_count"] == 1
    place.do(clients.delete_secret, caller, "alice", "ssh/key")
    assert place.do(clients.secret_value, "alice", "ssh/key") is None
    assert place.refusal(clients.delete_secret, caller, "alice", "ssh/key").startswith("not_found")


def test_a_secret_is_for_the_jobs_of_its_client_alone(place: Clients) -> None:
    put(place, "key", "value")
    for other in ("bob", "", None):
        assert place.do(clients.secret_value, other, "key") is None


def test_secrets_end_with_their_client(place: Clients) -> None:
    put(place, "key", "value")
    place.do(clients.delete_client, place.session, "alice")
    place.create("alice")
    assert place.do(clients.secret_value, "alice", "key") is None


@pytest.mark.parametrize("path", ["", "x" * 501, "a\0b", "a\nb"])
def test_a_path_that_makes_no_sense_is_refused(place: Clients, path: str) -> None:
    assert refused_secret(place, path, "value").startswith("invalid: path: ")


def test_a_secret_is_text_of_bounded_size(place: Clients) -> None:
    put(place, "key", "é" * 2**15)
    assert refused_secret(place, "key", "é" * 2**15 + "x") == "too_large: value: more than 64 KiB"
    assert refused_secret(place, "key", "a\0b").startswith("invalid: value: ")


def test_the_number_of_secrets_is_bounded_and_each_can_still_be_replaced(
    place: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MOST_SECRETS", 2)
    for path in ("one", "two", "one"):
        put(place, path, "value")
    assert refused_secret(place, "three", "value").startswith("conflict: path: ")


def test_a_client_that_is_unknown_has_no_secrets(place: Clients) -> None:
    assert refused_secret(place, "key", "value", ADMIN, "nobody") == "not_found: No client nobody"


def test_what_is_done_often_looks_at_few_rows(place: Clients) -> None:
    """The tables of tokens are large: no statement about them may scan one."""
    seen: list[str] = []
    place.refreshing()
    place.connection.set_trace_callback(lambda sql: seen.append(sql))
    refresh = place.refreshing()
    place.do(clients.refresh_token, refresh)
    place.do(clients.prune_refresh)
    place.connection.set_trace_callback(None)
    plans = [row["detail"] for sql in seen if "testflinger_refresh" in sql for row in explained(place, sql)]
    assert plans and not [detail for detail in plans if "SCAN" in detail]


def explained(place: Clients, sql: str) -> list[sqlite3.Row]:
    return place.rows(f"EXPLAIN QUERY PLAN {sql}")
