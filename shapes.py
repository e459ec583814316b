"""What goes in and out of the JSON API: every body, query and answer as a Struct, with the meaning of each field.

Decoding checks types and ranges by them, answers are made of them, and openapi.py reads them: a field is described here
and nowhere else. `{name}` in a description is the value of that setting, and `{name:}` or `{name: unit}` says which it
is too. Types only: nothing here knows a database.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, Raw, Struct, UnsetType

from heard import Takes

INT16_MAX, INT64_MAX = 2**15 - 1, 2**63 - 1
EXAMPLE_JOB = "5f0c7f6b2f1c4a0d8e9b3a71"  # `$JOB` for the shell: no two trackers give out the same
TOKEN = "^[0-9a-f]{24}$"

Int64 = Annotated[int, Meta(ge=-(2**63), le=INT64_MAX)]
# The code checks these limits itself: msgspec knows none beyond 63 bits.
Hash64 = Annotated[int, Meta(extra_json_schema={"minimum": -(2**63), "maximum": 2**64 - 1})]
Int16 = Annotated[int, Meta(ge=-INT16_MAX - 1, le=INT16_MAX)]  # what clients that are in use hold a task's numbers in
Natural16 = Annotated[int, Meta(ge=0, le=INT16_MAX)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Id = Annotated[int, Meta(ge=0, le=INT64_MAX)]
Moment = Annotated[int, Meta(ge=1, le=INT64_MAX)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
Delay = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Rate = Annotated[float, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1, le=1000)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Label = Annotated[str, Meta(max_length=200)]
ShortText = Annotated[str, Meta(max_length=1000)]
MOST_TEXT = 2**22  # characters: the longest recipe, and as a rule (the setting `max_body`) the longest body
LongText = Annotated[str, Meta(max_length=MOST_TEXT)]
NewPassword = Annotated[str, Meta(min_length=8, max_length=1000)]
Token = Annotated[str, Meta(pattern=TOKEN)]
LevelNumber = Annotated[int, Meta(ge=1, le=7)]
LogLevel = Literal["error", "warn", "info", "debug", "trace"]
JobState = Literal["waiting", "assigned", "succeeded", "failed", "timed_out", "cancelled"]


def about(description: str, *examples: Any, **limits: Any) -> Meta:
    """What is said of a field: its meaning, what it may look like, its limits."""
    return Meta(description=description, examples=list(examples) or None, **limits)


class Shape(Struct):
    """What goes in or out. Its fields are `Annotated[type, their meaning, *examples]`; a Meta may add limits."""

    def __init_subclass__(cls) -> None:
        """Makes of these notes what msgspec understands."""
        kinds = get_type_hints(cls, include_extras=True)
        cls.__annotations__ = {name: described(kinds[name]) for name in cls.__annotations__}


def described(kind: Any) -> Any:
    """The type with its meaning and examples as msgspec has them; any other type as it is."""
    notes = getattr(kind, "__metadata__", ())
    said = [note for note in notes if not isinstance(note, Meta)]
    limits = [note for note in notes if isinstance(note, Meta)]
    return Annotated[kind.__origin__, about(*said), *limits] if said else kind


def changes(kind: type[Struct], name: str, doc: str, without: tuple[str, ...]) -> Any:
    """The body that makes or changes a `kind`: its fields, none of them required. What is absent is UNSET.

    What is null gets its default in either case; a text that not every answer shows has the empty one.
    """
    fields, meant = [], {}
    for field in msgspec.structs.fields(kind):
        if field.name not in without:
            meaning = next(one.description for one in field.type.__metadata__ if one.description)
            fields.append((field.name, Annotated[field.type | UnsetType, Meta(description=meaning)], UNSET))
            given = field.default if field.default_factory is NODEFAULT else field.default_factory()
            meant[field.name] = "" if given is UNSET else given
    space = {"__doc__": doc, "null_means": meant}
    return msgspec.defstruct(name, fields, bases=(Shape,), namespace=space, module=__name__)


# ── Workers and access ────────────────────────────────────────────────────────────────────────────────────────────────


class Worker(Shape, kw_only=True):
    """A worker as everybody may see it."""

    id: Annotated[int, "The worker's number.", 1]
    created: Annotated[int, "When it was created, in unix seconds.", 1559396382]
    alias: Annotated[str, "Its name.", "my laptop"]
    secret: Annotated[str | UnsetType, "Its secret, shown only this once: in the answer that creates it."] = UNSET
    paused: Annotated[bool, "Whether an admin has paused it: then it is assigned nothing.", False]


class WorkerStatistics(Shape):
    """What a worker has done."""

    id: Annotated[int, "The worker's number.", 1]
    alias: Annotated[str, "Its name.", "my laptop"]
    closed_task_count: Annotated[int, "Tasks that it has closed, in all projects.", 42]
    paused: Annotated[bool, "Whether an admin has paused it.", False]


class Ranking(Shape):
    """The workers that have closed most tasks."""

    stats: Annotated[list[WorkerStatistics], "The workers, the busiest first: at most a thousand."]
    more: Annotated[bool | UnsetType, "True if there are more: ask again with `after` the last one's `id`."] = UNSET


class RankingQuery(Shape):
    """From which place on."""

    after: Annotated[Id | None, "Only workers behind the one with this `id`."] = None


class AliasBody(Shape):
    alias: Annotated[Label, "The worker's name. Empty means `{default_alias}`; `unassigned` is reserved."] = ""


class PauseBody(Shape):
    worker: Annotated[Id, "The worker's number."]
    paused: Annotated[bool, "Whether it is to be assigned nothing."]


class Access(Shape):
    """What a worker may do in a project, or asks to be allowed."""

    submit: Annotated[bool, "Whether it may submit tasks.", True]
    assign: Annotated[bool, "Whether it may be assigned tasks.", True]
    request: Annotated[bool, "Whether this still waits for a manager.", True]
    worker: Worker
    project: Annotated[int, "The project's number.", 2]


class AccessBody(Shape):
    project: Annotated[Id, "The project's number."]
    assign: Annotated[bool, "Whether to ask for ASSIGN: to be assigned its tasks."] = False
    submit: Annotated[bool, "Whether to ask for SUBMIT: to submit tasks. At least one of the two."] = False


class WorkerRolesBody(Shape):
    worker: Id
    assign: bool = False
    submit: bool = False


# ── Projects ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Project(Shape, kw_only=True):
    """A project. What it has by default, a new one gets; the counts are in answers about the project itself."""

    id: Annotated[int, "The project's number.", 1]
    priority: Annotated[Id, "Higher is served first to a worker that asks several projects.", 1] = 1
    name: Annotated[Name, "Its name, unlike any other project's. Required in a new project.", "first"]
    clone_url: Annotated[ShortText, "Where workers may clone its code from.", "https://example.org/alice/first.git"] = (
        ""
    )
    git_repo: Annotated[ShortText, "Full name of the repository whose pushes set `version`.", "alice/first"] = ""
    version: Annotated[ShortText, "The version of its code that workers are to use.", "c0ffee"] = ""
    motd: Annotated[str, "Message of the day.", "Be polite to the servers.", Meta(max_length=100_000)] = ""
    public: Annotated[bool, "Whether any worker is assigned its tasks. For a tracker admin to set.", False] = False
    hidden: Annotated[bool, "Whether only managers with READ see it. It cannot be public at once.", False] = False
    archived: Annotated[
        bool,
        "Whether it is archived: it is kept to be read and stays paused, takes nothing new, and is in no list unless"
        " asked for.",
        False,
    ] = False
    chain: Annotated[Id, "The project to which its closed tasks are submitted; 0 for none.", 0] = 0
    paused: Annotated[bool, "Whether assignment is paused.", False] = False
    assign_rate: Annotated[
        Rate, "Tasks assigned per second at most; 0 or null sets, and 1.7976931348623157e308 is, unlimited.", 2.5
    ] = 0.0
    submit_rate: Annotated[
        Rate, "Tasks submitted per second at most; 0 or null sets, and 1.7976931348623157e308 is, unlimited.", 10.0
    ] = 0.0
    keep_hashes: Annotated[
        bool, "Whether the hashes of closed tasks stay taken, so that each is handed out once for ever.", False
    ] = False
    retry_delay: Annotated[
        float,
        "Seconds that a task rests when an attempt has failed or its lease was lost, twice as many after each further"
        " one, give or take a tenth; an hour at most. 0: it is ready again at once.",
        5.0,
        Meta(ge=0, le=3600),
    ] = 0.0
    max_lost_leases: Annotated[
        Natural16 | None,
        "Leases that workers may lose of one plain task, after which it counts as failed. 0: any number. Null means"
        " {default_max_lost_leases:}.",
        5,
    ] = None
    waiting_task_count: Annotated[int | UnsetType, "Tasks that wait for a worker.", 120] = UNSET
    assigned_task_count: Annotated[int | UnsetType, "Tasks that workers hold now.", 4] = UNSET
    awaiting_verification_count: Annotated[
        int | UnsetType, "Tasks done by somebody that wait for another worker's verification.", 0
    ] = UNSET
    failed_task_count: Annotated[int | UnsetType, "Tasks that have failed for good.", 1] = UNSET
    closed_task_count: Annotated[int | UnsetType, "Tasks that are done.", 42] = UNSET
    delayed_task_count: Annotated[int | UnsetType, "Tasks that wait for their time.", 0] = UNSET


class ProjectContent(Project, kw_only=True):
    """A project, and the same once more: front ends that are in use read `content.project`."""

    project: Annotated[Project, "The same fields."]


COUNT_COLUMNS = tuple(field.name for field in msgspec.structs.fields(Project) if field.default is UNSET)
PROJECT_COLUMNS = tuple(name for name in Project.__struct_fields__ if name not in COUNT_COLUMNS)
ProjectBody = changes(
    Project,
    "ProjectBody",
    "A project's fields. Absent ones take their default in a new project, and stay as they are in an update.",
    without=("id", *COUNT_COLUMNS),
)


class PausedBody(Shape):
    paused: Annotated[bool, "Whether nothing is assigned from now on."]


class ArchivedBody(Shape):
    archived: bool


class ProjectsQuery(Shape):
    archived: Annotated[bool, "Whether to list the archived projects instead of the others."] = False


class SecretBody(Shape):
    secret: Annotated[str, "The secret: any text, usually JSON.", Meta(max_length=100_000)] = ""


class WebhookSecretBody(Shape):
    webhook_secret: Annotated[ShortText, "The key, as it was given to the git host. Empty: no push event matches."] = ""


NoticeEvent = Literal["finished", "failing", "stalled", "worker_paused", "access_requested"]
NoticeKind = Literal["json", "slack", "discord", "ntfy", "command"]


class Notices(Shape, kw_only=True):
    """Where the notices of a project go, and what is told."""

    url: Annotated[str, "Where they are posted; empty: nowhere.", "https://ntfy.example.org/crawls"] = ""
    kind: Annotated[NoticeKind, "What is there. `command` is the tracker's own, which needs no URL.", "ntfy"] = "json"
    events: Annotated[
        list[NoticeEvent],
        "What is told: nothing is left to do; many of the last 100 attempts have failed; tasks wait, and none is"
        " closed; a worker that keeps failing is paused; a worker asks for access.",
        ["finished", "failing"],
        Meta(max_length=20),
    ] = []
    failing_share: Annotated[
        int, "Percent of the last attempts from which on `failing` is told.", 50, Meta(ge=1, le=100)
    ] = 50
    stalled_minutes: Annotated[
        int, "Minutes without a closed task after which `stalled` is told.", 30, Meta(ge=1, le=100_000)
    ] = 30
    sent: Annotated[int | None, "When one was taken last, in unix seconds.", None] = None
    problem: Annotated[str, "Why the last one was not taken; empty: it was.", ""] = ""
    waiting: Annotated[int, "How many wait to be taken.", 0] = 0


NoticesBody = changes(
    Notices,
    "NoticesBody",
    "Where the notices of a project go. Fields that are absent stay as they are.",
    without=("sent", "problem", "waiting"),
)


class Snapshot(Shape):
    """The counts of a project at one moment."""

    new_task_count: Annotated[int, "Tasks that were waiting, delayed or assigned.", 124]
    failed_task_count: Annotated[int, "Tasks that had failed for good.", 1]
    closed_task_count: Annotated[int, "Tasks that had been done until then.", 42]
    worker_access_count: Annotated[int, "Workers with access.", 3]
    awaiting_verification_count: Annotated[int, "Tasks that waited for another worker's verification.", 0]
    time_stamp: Annotated[int, "The moment, in unix seconds.", 1559397394]


class LastSnapshots(Shape):
    count: Annotated[int, "How many.", Meta(ge=1, lt=1000)] = 60


class SnapshotsBetween(Shape, rename={"start": "from", "end": "to"}):
    start: Annotated[Int64, "The first moment, in unix seconds."]
    end: Annotated[Int64, "The last moment, in unix seconds."]


class PausedWorker(Shape):
    """A worker that has failed one task after the other in a project, and gets none there until its pause ends."""

    id: Annotated[int, "The worker's number.", 2]
    alias: Annotated[str, "What it calls itself.", "my laptop"]
    failures_in_row: Annotated[int, "How many tasks it has failed since it closed one.", 25]
    left: Annotated[float, "Seconds until it gets one task on trial; 0: it may have that now.", 413.5]


class Assignee(Shape):
    """A worker that holds tasks of a project."""

    assignee: Annotated[str, "The worker's alias; `unassigned` for tasks that nobody holds.", "my laptop"]
    task_count: Annotated[int, "How many it holds.", 4]


class Repository(Shape):
    """The repository of a push event."""

    full_name: Annotated[str, "The project's `git_repo`, in upper or lower case."]


class PushBody(Shape):
    ref: Annotated[str, "The branch: `refs/heads/` and one of {production_branches:}."]
    after: Annotated[str, "The commit that becomes the project's version.", Meta(min_length=1, max_length=1000)]
    repository: Annotated[Repository, "The repository that was pushed to."]
    deleted: Annotated[bool, "Whether the branch was deleted, which is refused."] = False


class Push(Shape):
    version: Annotated[str, "The new version.", "c0ffee"]
    projects: Annotated[list[int], "The projects that have it now.", [1]]


# ── Managers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Manager(Shape):
    """A manager."""

    id: Annotated[int, "The manager's number.", 1]
    username: Annotated[str, "Its name.", "alice"]
    tracker_admin: Annotated[bool, "Whether it is a tracker admin, who has every role in every project.", True]
    register_time: Annotated[int, "When it registered, in unix seconds.", 1559396382]


class ProjectManager(Shape):
    """A manager and its roles in a project."""

    manager: Manager
    role: Annotated[int, "Sum of READ 1, EDIT 2, MANAGE_ACCESS 4, SECRET 8, MAINTENANCE 16.", 31]


class Account(Shape):
    """Who is logged in."""

    logged_in: Annotated[bool, "Whether anybody is.", True]
    manager: Annotated[Manager | None, "Who; null for nobody."]


class RegisterBody(Shape):
    username: Annotated[
        str, "The manager's name: no blanks at its ends, unlike any other manager's.", Meta(min_length=3, max_length=16)
    ]
    password: Annotated[NewPassword, "The password."]
    code: Annotated[
        ShortText, "Of the first account, unless it is made on the tracker's own machine: what the tracker has printed."
    ] = ""


class LoginBody(Shape):
    username: Annotated[ShortText, "The manager's name."]
    password: Annotated[ShortText, "The manager's password."]


SessionMark = Annotated[str, Meta(pattern="^([0-9a-f]{16})?$")]


class SessionsForm(Shape):
    """Which logins of a manager: the one with this mark, or all but one."""

    mark: SessionMark = ""
    keep: SessionMark = ""


class PasswordForm(Shape):
    password: ShortText
    new_password: NewPassword


class RoleBody(Shape, kw_only=True):
    manager: Annotated[Id | UnsetType, "The manager's number."] = UNSET
    username: Annotated[ShortText | UnsetType, "Its exact name, in place of its number: of any.", "bob"] = UNSET
    role: Annotated[
        int,
        "Sum of READ 1 (see a hidden project), EDIT 2 (change it), MANAGE_ACCESS 4 (grant access and roles), SECRET 8"
        " (see and set secrets), MAINTENANCE 16 (reset tasks). 0 takes all away.",
        Meta(ge=0, le=31),
    ]


class RoleForm(Shape):
    """The roles of a manager, a tick box each."""

    username: ShortText
    read: bool = False
    edit: bool = False
    manage_access: bool = False
    secret: bool = False
    maintenance: bool = False


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Script(Shape):
    """A script that a job brings along."""

    source: Annotated[str, "The script.", "#!/bin/sh\necho $TRACKER_VAR_branch\n"]
    md5: Annotated[str, "MD5 of the source, in hexadecimal: for caches.", "e8b9b8d4eb4eaf2a4bb8a0d3b05a1b37"]


RUNAS = "The command line that runs the script: `%script%` is its file. Empty: it runs itself."


class TaskJob(Shape):
    """What whoever runs a job's task needs. Plain tasks have none."""

    id: Annotated[str, "The job's id.", EXAMPLE_JOB]
    template: Annotated[str, "The name of its template.", "build"]
    script: Annotated[Script | None, "Its script, if it brings one."]
    runas: Annotated[str, RUNAS, ""]
    arguments: Annotated[list[str], "The arguments, in their order.", ["fast"]]
    variables: Annotated[dict[str, Any], "The values of the variables.", {"branch": "main"}]
    env: Annotated[
        dict[str, str],
        "The environment that the template adds, and what scripts of other systems look for.",
        {"LANG": "C.UTF-8"},
    ]
    timeout: Annotated[float, "Seconds that it may run.", 60.0]
    attachments: Annotated[
        str | UnsetType,
        "The path of what a client has attached to it, where one has: a tar that gzip has packed.",
        "/task/attachments/1",
    ] = UNSET


class Task(Shape):
    """An assigned task, with its project."""

    id: Annotated[int, "The task's number, by which it is released. No number is used twice.", 1]
    priority: Annotated[int, "Higher is assigned first.", 1]
    assignee: Annotated[int, "The worker that holds it: the caller.", 1]
    retries: Annotated[int, "Attempts that have failed.", 0]
    max_retries: Annotated[int, "Failed attempts after which it counts as failed.", 3]
    status: Annotated[int, "1: new. (2 is failed; such a task is not assigned.)", 1]
    recipe: Annotated[str, "What is to be done.", "https://example.org/"]
    max_assign_time: Annotated[int, "Seconds that the worker may hold it; 0 means the tracker's default.", 600]
    assign_time: Annotated[int, "When it was assigned, in unix seconds.", 1559397394]
    verification_count: Annotated[int, "Different workers that must release it with the same `verification`.", 0]
    lease: Annotated[int, "Seconds that this worker may hold it, unless it extends that.", 600]
    attempt: Annotated[int, "The number of this assignment of the task, for its release.", 1]
    project: Project
    job: TaskJob | UnsetType = UNSET


class SubmitBody(Shape):
    """A task to be. `hash_u64` and `unique_str` are other spellings of `hash64` and `unique_string`."""

    project: Annotated[Id, "The project whose queue gets the task."]
    recipe: Annotated[
        str,
        "What is to be done, as the project's workers understand it: a URL, JSON, a command.",
        Meta(min_length=1, max_length=MOST_TEXT),
    ]
    priority: Annotated[Int16, "Higher is assigned first; within one priority the oldest task."] = 0
    max_retries: Annotated[
        Natural16, "Failed attempts after which the task counts as failed. 0 and 1 both mean one attempt."
    ] = 0
    max_assign_time: Annotated[
        Natural,
        "Seconds that a worker may hold the task before it goes to another one. 0 means {default_max_assign_time:}.",
    ] = 0
    verification_count: Annotated[
        Natural16,
        "Different workers that must release the task with the same `verification` before it is closed. 0 and 1 both"
        " mean one.",
    ] = 0
    delay: Annotated[
        Delay, "Seconds, from when it is in the queue, for which nobody is assigned the task. Its hash is taken."
    ] = 0
    not_before: Annotated[
        float,
        "The same as a moment in unix seconds; one that has passed delays nothing. Give this or `delay`, not both.",
        Meta(ge=0, le=1e11),
    ] = 0
    hash64: Annotated[
        Hash64, "64 bits, signed or unsigned, that keep another task with the same hash out of the project. 0 for none."
    ] = 0
    hash_u64: Annotated[Hash64, "Another spelling of `hash64`."] = 0
    unique_string: Annotated[str, "Text from which the hash is made. Give this or `hash64`, not both."] = ""
    unique_str: Annotated[str, "Another spelling of `unique_string`."] = ""


class LineDefaults(Shape):
    """What tasks of an upload get that do not say otherwise. `once`: a task's recipe is its unique string."""

    priority: Annotated[Int16, "Priority of the tasks that do not say otherwise."] = 0
    max_retries: Annotated[Natural16, "Failed attempts after which such a task counts as failed."] = 0
    max_assign_time: Annotated[
        Natural, "Seconds that a worker may hold such a task. 0 means {default_max_assign_time:}."
    ] = 0
    verification_count: Annotated[Natural16, "Different workers that must agree on such a task."] = 0
    delay: Annotated[Delay, "Seconds, from when it is in the queue, for which nobody is assigned such a task."] = 0
    once: Annotated[
        bool,
        "Whether a recipe is its task's `unique_string`, if the line gives no hash: a task with the same recipe is"
        " then a duplicate.",
    ] = False
    format: Annotated[
        Literal["auto", "text", "json"],
        "`text`: each line is a recipe. `json`: each line is an object. `auto`: an object if it begins with a brace,"
        " else a recipe.",
    ] = "auto"


class UploadQuery(LineDefaults, kw_only=True):
    """The same, and which of a client's uploads it is."""

    token: Annotated[
        Label, "A text of the client's own, unlike that of any other upload: a repeated call with it submits nothing."
    ] = ""
    first_line: Annotated[
        int,
        "The number of the first line, for a client that sends a file in parts. From 2 on it is a later part of a"
        " file, and is taken as it stands: what it begins with does not say that it is packed, or no text.",
        Meta(ge=1, le=INT64_MAX),
    ] = 1


class LinesReport(Shape):
    """What became of the lines of an upload. The number of a line counts the blank ones too."""

    line_count: Annotated[int, "Lines that are not blank.", 3] = 0
    refused_count: Annotated[int, "Lines that are no task.", 1] = 0
    refused: Annotated[
        list[tuple[int, str]], "The first of them: number and reason.", [[3, "max_retries: must be at least 0"]]
    ] = []
    duplicate_count: Annotated[int, "Tasks that were skipped until now, as another one has their hash.", 1] = 0
    duplicates: Annotated[list[int], "The numbers of the first such lines.", [2]] = []


class LongOperation(Shape):
    """What was begun to be done to many tasks, a piece at a time; a restart of the tracker does not end it."""

    id: Annotated[int, "Its number.", 1]
    project: Annotated[int, "The project whose tasks they are.", 1]
    kind: Annotated[str, "What is done, such as `submit_lines`.", "submit_lines"]
    affected: Annotated[int, "To how many it was done until now.", 1]
    expected: Annotated[int | None, "How many tasks it is about, duplicates included; null when nobody can know.", 2]
    started: Annotated[int, "When it began, in unix seconds.", 1559396382]
    finished: Annotated[int | None, "When it ended, in unix seconds; null until then.", 1559396383]
    state: Annotated[Literal["running", "finished"], "Whether it is still going on.", "finished"]
    report: Annotated[LinesReport | None, "Of submitted lines; null for anything else."]


class BulkSubmitted(Shape):
    submitted: Annotated[int, "Tasks that were stored.", 2]
    duplicates: Annotated[int, "Tasks that were skipped, as another one has their hash.", 0]


class ReleaseBody(Shape):
    """How a worker's hold on a task ends. `output` becomes the result of the task's job, if it has one."""

    as_printed: ClassVar[bool] = True  # who is refused for what a script has printed keeps a task that is done
    task_id: Annotated[Id, "The task's number."]
    result: Annotated[
        Literal[0, 1, 2],
        "0: done. 1: failed; the task is retried until `max_retries`. 2: skipped; the task waits again as if the"
        " worker had never had it.",
    ] = 0
    verification: Annotated[
        Hash64,
        "Hash of the result, 64 bits, signed or unsigned. Counts when the task needs several verifications: it is"
        " closed when enough workers have given the same.",
    ] = 0
    output: Annotated[
        Raw | UnsetType,
        "What has come of it, any JSON: the result of the task's job, if it has one. Of an object, `state` (`failure`"
        " and `error` fail the job, `warning` marks it) and `output` are looked at, or else `lastline`, if that is"
        ' JSON: an array is the output, `{{"state": …, "data": …}}` gives both. With `killed` true a failed job has'
        " timed out.",
    ] = UNSET
    delay: Annotated[
        Delay,
        "Of a skipped task: seconds for which nobody is assigned it, {max_skip_delay:} at most. Refused with others.",
    ] = 0
    error: Annotated[
        str,
        "Of a failed task: why, in words. Its first 500 characters are kept while the task is, and shown to managers,"
        " for whom failed tasks are grouped by it. Refused with others, unless it is empty.",
    ] = ""
    for_good: Annotated[
        bool,
        "Of a failed task: further attempts would be in vain, and the worker is not at fault. It is not retried, and"
        " does not count among the failures in a row that pause a worker. Of a job's task it changes nothing.",
    ] = False
    attempt: Annotated[
        Natural,
        "The `attempt` of the assigned task: this release is then not taken for a later assignment to the same worker."
        " 0 for whichever it is.",
    ] = 0


class BulkReleaseBody(Shape):
    as_printed: ClassVar[bool] = True
    releases: Annotated[list[ReleaseBody], "The releases, at most {max_count:}."]


class Extension(Shape):
    """More time for a task that the caller holds."""

    task_id: Annotated[Id, "The task's number."]
    seconds: Annotated[
        Delay, "From now on. More than {max_extension:} counts as that, and less than there is left changes nothing."
    ]
    attempt: Annotated[Natural, "The `attempt` of the assigned task: only that assignment is extended. 0 for any."] = 0


class ExtendBody(changes(Extension, "OneExtension", "An extension.", without=())):
    """One extension, or several."""

    extensions: Annotated[list[Extension] | UnsetType, "Several of them, at most {max_count:}."] = UNSET


class Extended(Shape):
    """What became of an extension."""

    held: Annotated[bool, "Whether the caller holds the task. If not, somebody took it away: stop.", True]
    left: Annotated[float, "Seconds that it may still be held.", 600.0] = 0.0


class AssignQuery(Shape):
    """How many tasks, and how long to wait for the first one."""

    wait: Annotated[
        float,
        "Seconds to wait for a task, if there is none now. More than {max_wait:} counts as that. 0 does not wait.",
        Meta(ge=0, le=1e9),
    ] = 0
    count: Annotated[
        Natural,
        "Tasks to take at once. The answer is then a list, `tasks`, also of one. More than {max_count:} counts as"
        " that; long recipes may end the list early. 0 takes one, `task`.",
    ] = 0
    takes: Annotated[
        Takes,
        "What the worker can do: `commands` (tasks, and jobs that bring no script), `scripts` (jobs that bring one), or"
        " `all`. It changes nothing of what it is assigned; a job that waits tells by it what for.",
    ] = ""


class AssignFromQuery(AssignQuery, kw_only=True):
    """The same, of several projects."""

    project: Annotated[
        set[Id],
        "A project's number. Given once for each project: `project=1&project=2`.",
        Meta(min_length=1, max_length=100),
    ]


# ── Templates, jobs and workflows ─────────────────────────────────────────────────────────────────────────────────────

Choices = Annotated[list[Any], Meta(max_length=1000)]


class Variable(Shape):
    """A variable that a template declares: its value unless the job brings one, and which values it may have."""

    name: Annotated[Name, "Its name.", "branch"]
    value: Annotated[Any, "Its value, unless the job brings one; null for none.", "main"] = None
    required: Annotated[bool, "Whether it must have a value that is neither null nor empty.", True] = False
    allowed: Annotated[Choices, "The values that it may have; empty for any.", []] = []
    description: Annotated[str, "What it is for.", "What to build."] = ""


class Argument(Shape):
    """An argument that a template declares. The job brings those that are not fixed, in their order."""

    order: Annotated[Int64, "Its place among the arguments.", 0] = 0
    type: Annotated[
        Name,
        "`fixed`: it has its own value. Anything else: the job brings it, and a form asks for it in this way.",
        "select",
    ] = "input"
    label: Annotated[str, "What a form calls it.", "Which tests"] = ""
    value: Annotated[Any, "The value of a fixed one; what a form offers for another one.", "fast"] = None
    options: Annotated[Choices, "What a form lets people choose from.", ["fast", "all"]] = []


class Template(Shape, kw_only=True):
    """A named way to make a job. What it has by default, a new one gets."""

    id: Annotated[int, "The template's number.", 1]
    project: Annotated[
        Id, "The project whose queue gets the jobs' tasks. Required in a new template, which stays in it.", 1
    ]
    name: Annotated[Name, "Its name. Required in a new template.", "build"]
    description: Annotated[str, "What it is for.", "Builds a branch.", Meta(max_length=10_000)] = ""
    runas: Annotated[ShortText, RUNAS, ""] = ""
    timeout: Annotated[Seconds | None, "Seconds that a job may run. Null means {default_job_timeout:}.", 60.0] = None
    max_retries: Annotated[
        Natural16, "Failed attempts after which a job has failed. 0 and 1 both mean one attempt.", 0
    ] = 0
    priority: Annotated[Int16, "Higher is assigned first.", 0] = 0
    recipe: Annotated[
        LongText | UnsetType,
        "The tasks' recipe; `{{name}}` stands for the variable's value. Empty: JSON of the template's name, the"
        " variables and the arguments. Not in a list.",
        "build {branch}",
    ] = UNSET
    script: Annotated[
        LongText | UnsetType,
        "A script that its jobs bring along. Empty for none. Not in a list.",
        "#!/bin/sh\necho $TRACKER_VAR_branch\n",
    ] = UNSET
    variables: Annotated[list[Variable], "The variables that it declares.", Meta(max_length=200)] = []
    arguments: Annotated[list[Argument], "The arguments that it declares.", Meta(max_length=200)] = []
    env: Annotated[
        dict[str, str], "What is added to the environment of whoever runs a job: names and values.", {"LANG": "C.UTF-8"}
    ] = {}
    undeclared: Annotated[
        bool, "Whether a job may bring variables that are not declared. True in a new template.", False
    ] = True
    api: Annotated[
        bool, "Whether other programs may trigger it by its name, which then no other such template has.", True
    ] = False
    has_key: Annotated[bool, "Whether a program that does so needs a key.", True]
    keep_count: Annotated[Count | None, "Ended jobs that are kept. Null for all of them.", 100] = None
    keep_time: Annotated[
        Annotated[int, Meta(ge=1, le=10**9)] | None,
        "Seconds for which they are kept. Null means {job_retention:}.",
        86400,
    ] = None
    created: Annotated[int, "When it was made, in unix seconds.", 1559396382]
    updated: Annotated[int, "When it was changed last, in unix seconds.", 1559396382]
    secret: Annotated[str | UnsetType, "Opens this template alone. Shown only when it is made.", "c0ffee"] = UNSET


LEAST_KEY = 8  # characters of a key that somebody chooses


class TemplateBody(
    changes(
        Template, "TemplateChanges", "A template's fields.", without=("id", "has_key", "created", "updated", "secret")
    )
):
    """A template, or what is to change of it."""

    null_means: ClassVar[dict[str, Any]] = {"key": ""}
    key: Annotated[
        Label | UnsetType, "The key that those programs need, a new one of at least 8 characters. Empty for none."
    ] = UNSET


class TriggerBody(Shape):
    """What a job is given: values of variables, and the arguments that are not fixed."""

    variables: Annotated[dict[str, Any], "Values of variables, by their names."] = {}
    arguments: Annotated[
        list[Any], "The arguments that are not fixed, in their order: null for an optional one. More are ignored."
    ] = []


class Job(Shape, kw_only=True):
    """A task that somebody wants to hear back from, or the run of a workflow. Lists leave out the last four fields."""

    id: Annotated[str, "The job's id.", EXAMPLE_JOB]
    name: Annotated[str, "The name of its template, or of its workflow.", "build"]
    template: Annotated[int | None, "Its template's number; null for the run of a workflow.", 1]
    project: Annotated[int, "The project's number.", 1]
    state: Annotated[
        JobState,
        "`waiting`, `assigned`; or ended, for ever: `succeeded`, `failed`, `timed_out`, `cancelled`.",
        "waiting",
    ]
    task: Annotated[int | None, "The number of its task, which is gone when it has ended.", 4]
    timeout: Annotated[float, "Seconds that it may run.", 60.0]
    origin: Annotated[str, "Through which door it came: `native`, `page`, a dialect's name, `workflow`.", "native"]
    attempts: Annotated[int, "How often it was assigned; of the run of a workflow, how many steps have followed.", 1]
    assignee: Annotated[int | None, "The worker of the present or last attempt; null while it waits.", 1]
    created: Annotated[float, "When it was made, in unix seconds.", 1559396382.5]
    started: Annotated[float | None, "When it was assigned for the first time.", 1559396383.5]
    finished: Annotated[float | None, "When it ended.", 1559396384.5]
    reported: Annotated[
        str | None,
        "The state that its result speaks of, as it was written; in a list its first 200 characters.",
        "success",
    ]
    warned: Annotated[
        bool, "Whether something of level warn or error was logged, or its result reports a warning.", False
    ]
    retry_of: Annotated[str | None, "The job of which it is a retry.", EXAMPLE_JOB]
    workflow_job: Annotated[str | None, "The run of a workflow of which it is a step.", EXAMPLE_JOB]
    variables: Annotated[dict[str, Any] | UnsetType, "The values of its variables.", {"branch": "main"}] = UNSET
    arguments: Annotated[list[Any] | UnsetType, "Its arguments, in their order.", ["fast"]] = UNSET
    result: Annotated[Any | UnsetType, "The `output` of the last attempt's release.", {"code": 0, "lastline": "ok"}] = (
        UNSET
    )
    output: Annotated[Any | UnsetType, "What the result hands on, such as to the next step of a workflow.", None] = (
        UNSET
    )


class JobPage(Shape):
    jobs: Annotated[list[Job], "The jobs, the newest first."]
    before: Annotated[int | None, "What continues the list; null at its end.", 7]


class JobsQuery(Shape, rename={"start": "from", "end": "to"}):
    """Which jobs: of a project or template, in a state, with a text, made between two times; beyond `before`."""

    project: Annotated[Id | None, "Only jobs of this project. Required of a worker that names no template."] = None
    template: Annotated[Id | None, "Only jobs of this template, which may have been deleted."] = None
    state: Annotated[JobState | None, "Only jobs in this state."] = None
    start: Annotated[Int64 | None, "Only jobs made at this moment or later, in unix seconds."] = None
    end: Annotated[Int64 | None, "Only jobs made until this moment, in unix seconds."] = None
    before: Annotated[Id, "Where the list goes on: the `before` of the last answer."] = INT64_MAX
    limit: Annotated[Limit, "The most jobs to answer with."] = 100
    text: Annotated[
        str, Meta(max_length=200), "Only jobs with this text in their name, id, variables or arguments."
    ] = ""


class JobEntry(Shape):
    """A line of a job's log."""

    id: Annotated[int, "The line's number within the log, for `after`.", 1]
    time: Annotated[int, "When, in unix seconds, as the worker says.", 1559397394]
    scope: Annotated[str, "Which part of the worker speaks; `tracker` for the tracker's own lines.", "tracker"]
    message: Annotated[str, "The line.", "created by manager alice"]
    worker: Annotated[int, "The worker's number; 0 is the tracker.", 0]
    level: Annotated[str, "`error`, `warn`, `info`, `debug` or `trace`.", "info"]


class LinesQuery(Shape):
    """Which lines of a job's log: at most `limit` of those after the one with this id."""

    after: Annotated[Natural, "Only lines after the one with this `id`."] = 0
    limit: Annotated[Limit, "The most lines to answer with; very long ones may end the answer early."] = 1000


class Edge(Shape):
    """After a step of `template` that ended so follows one of `target`."""

    template: Annotated[Id, "The template whose step has ended.", 1]
    ending: Annotated[Literal["success", "failure", "timeout", "cancelled"], "In which way it has ended.", "failure"]
    target: Annotated[Id, "The template that follows, with the step's output as its arguments.", 1]


class Workflow(Shape, kw_only=True):
    """Templates that follow one another."""

    id: Annotated[int, "The workflow's number.", 1]
    project: Annotated[Id, "Its project. Required in a new workflow, which stays in it.", 1]
    name: Annotated[Name, "Its name, unlike any other workflow's. Required in a new workflow.", "build and try again"]
    start: Annotated[Id, "The template that it starts with. Required in a new workflow.", 1]
    created: Annotated[int, "When it was made, in unix seconds.", 1559396382]
    edges: Annotated[
        list[Edge], "Which templates follow which. A change replaces them all.", Meta(max_length=1000)
    ] = []
    secret: Annotated[str | UnsetType, "Opens this workflow alone. Shown only when it is made.", "c0ffee"] = UNSET


WorkflowBody = changes(
    Workflow, "WorkflowBody", "A workflow, or what is to change of it.", without=("id", "created", "secret")
)


# ── Logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class TaskEntry(Shape):
    """A line for the log of a task."""

    message: Annotated[str, "The line; of a longer one than 65,536 characters the beginning is kept."]
    timestamp: Annotated[Int64, "The worker's time, in unix seconds."]
    level: Annotated[LogLevel, "Its level. A job's log keeps every one."] = "info"
    scope: Annotated[str, "Which part of the worker speaks."] = ""


class TaskLogBody(Shape):
    """Lines of the caller's present assignment, the first of them with the number `first`, counted from 0."""

    as_printed: ClassVar[bool] = True  # its texts are whatever a script prints, and none is refused
    task_id: Annotated[Id, "The task's number."]
    entries: Annotated[
        list[TaskEntry],
        "The lines, the oldest first. None at all just asks whether the task is still held.",
        Meta(max_length=1000),
    ] = []
    first: Annotated[
        Natural | None,
        "The number of the first of these lines within this assignment, counted from 0. Lines of a job that are"
        " numbered are stored once, so a request may be repeated.",
    ] = None


class TaskLogged(Shape):
    held: Annotated[bool, "Whether the caller holds the task. If not, somebody took it away: stop.", True]
    stored: Annotated[int, "Lines that were new.", 2]
    dropped_by: Annotated[
        str | UnsetType,
        "Lines of a job were dropped for which there is no room now, by this setting: later ones may be stored, and the"
        " job's log tells how many were not. Missing else, also when the log is full, which it stays.",
        "stranger_job_rate",
    ] = UNSET


class LogBody(Shape):
    """A line to log. Existing clients also spell the field `Message`, and log a script's whole output as one line."""

    as_printed: ClassVar[bool] = True
    scope: Annotated[str, "Which part of the worker speaks.", Meta(min_length=1)]
    timestamp: Annotated[Moment, "The worker's time, in unix seconds."]
    message: Annotated[
        str,
        "The line. Required, in one of its two spellings; of a longer one than 65,536 characters the beginning is"
        " kept, and a NUL character becomes U+FFFD.",
    ] = ""
    Message: Annotated[str, "Another spelling of `message`."] = ""
    task_id: Annotated[Id | None, "The task that the line is about. Counts when the worker holds it."] = None


class LogEntry(Shape):
    """A line that a worker has logged."""

    id: Annotated[int, "The entry's number, for `before`.", 7]
    message: Annotated[str, "The line.", "Fetched https://example.org/"]
    timestamp: Annotated[int, "The worker's time, in unix seconds.", 1559393394]
    data: Annotated[str, "JSON text with the scope and the worker.", '{"scope":"fetch","worker":"my laptop (1)"}']
    level: Annotated[int, "3 error, 4 warn, 5 info, 6 debug, 7 trace.", 5]


class Act(Shape):
    """What a manager did."""

    id: Annotated[int, "Its number, for `before`.", 7]
    time: Annotated[int, "When, in unix seconds.", 1559393394]
    project: Annotated[int | None, "In which project; null for none, or one that is gone.", 1]
    manager: Annotated[int, "The manager's number.", 1]
    username: Annotated[str, "Its name then.", "alice"]
    action: Annotated[str, "What it did, such as `update_project`, `set_role` or `hard_reset`.", "update_project"]
    details: Annotated[
        dict[str, Any], "With what. Of a secret, a script or another long text only that it was given.", {"priority": 5}
    ]


class ActsQuery(Shape):
    """Which acts: at most `limit` of those before the one with this id."""

    before: Annotated[Id, "Only acts older than the one with this `id`."] = INT64_MAX
    limit: Annotated[Limit, "The most acts to answer with."] = 100


class LogsQuery(Shape):
    """Which log entries: of one `level`, or down to `max_level`; logged after `since`; older than entry `before`."""

    level: Annotated[
        LevelNumber | None,
        "Only entries of this level: 3 error, 4 warn, 5 info, 6 debug, 7 trace. Required, unless `max_level` is given.",
    ] = None
    since: Annotated[Moment | None, "Only entries after this moment, in unix seconds."] = None
    max_level: Annotated[LevelNumber | None, "Entries of level 1 to this one."] = None
    before: Annotated[
        Id | None, "Only entries older than the one with this `id`: the last of a page gives the next page."
    ] = None
    limit: Annotated[Limit, "The most entries to answer with; very long ones may end the page early."] = 1000


class LogsBody(LogsQuery, kw_only=True):
    """The same as existing clients ask: `since` is required, and of no level there is no entry."""

    level: Annotated[
        Annotated[int, Meta(ge=0, le=7)],
        "Only entries of this level: 3 error, 4 warn, 5 info, 6 debug, 7 trace. 0 for none, or for `max_level`.",
    ] = 0
    since: Annotated[Moment, "Only entries after this moment, in unix seconds."]
