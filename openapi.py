"""The OpenAPI 3.1 document of the tracker's JSON API, and the values of the page that shows it to people.

What the code decodes comes from the code: paths, docstrings, and the msgspec types that the handlers carry (`takes` in
tracker.py). What no type says stands in tables here, which the tests compare with a running tracker: the shape of each
answer, the meaning of each field (MEANING), and of each call who may make it, why it is refused and an example
(OPERATIONS). The examples make up a story: pasted one after the other, in the order of the table, they all work.

    document(api, settings, version) ─► with_curl(document, url) ─► /openapi.json
                                                       └─► pages(document, url) ─► templates/docs.html

This module has no say in the tracker's state, and imports nothing from tracker.py.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

REF = "#/components/schemas/{name}"
EXAMPLE_JOB = "5f0c7f6b2f1c4a0d8e9b3a71"  # `$JOB` for the shell: no two trackers give out the same

# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(kind: Any, description: str, example: Any) -> Any:
    """The type of a field of an answer: its kind, its meaning, and what it may look like."""
    return Annotated[kind, Meta(description=description, examples=[example])]


class PublicWorker(Struct):
    """A worker as everybody may see it."""

    id: shown(int, "The worker's number.", 1)
    created: shown(int, "When it was created, in unix seconds.", 1559396382)
    alias: shown(str, "Its name.", "my laptop")
    paused: shown(bool, "Whether an admin has paused it: then it is assigned nothing.", False)


class NewWorker(PublicWorker):
    """A worker that was just created."""

    secret: Annotated[str, Meta(description="Its secret, shown only this once.")]


class WorkerStatistics(Struct):
    """What a worker has done."""

    id: shown(int, "The worker's number.", 1)
    alias: shown(str, "Its name.", "my laptop")
    closed_task_count: shown(int, "Tasks that it has closed, in all projects.", 42)
    paused: shown(bool, "Whether an admin has paused it.", False)


class Project(Struct):
    """A project as workers see it."""

    id: shown(int, "The project's number.", 1)
    priority: shown(int, "Higher is served first to a worker that asks several projects.", 1)
    name: shown(str, "Its name.", "first")
    clone_url: shown(str, "Where workers may clone its code from.", "https://example.org/alice/first.git")
    git_repo: shown(str, "The repository whose pushes set `version`.", "alice/first")
    version: shown(str, "The version of its code that workers are to use.", "c0ffee")
    motd: shown(str, "Message of the day.", "Be polite to the servers.")
    public: shown(bool, "Whether any worker is assigned its tasks.", False)
    hidden: shown(bool, "Whether only managers with READ see it.", False)
    chain: shown(int, "The project to which its closed tasks are submitted; 0 for none.", 0)
    paused: shown(bool, "Whether assignment is paused.", False)
    assign_rate: shown(float, "Tasks assigned per second at most; 1.7976931348623157e308 is unlimited.", 2.5)
    submit_rate: shown(float, "Tasks submitted per second at most; 1.7976931348623157e308 is unlimited.", 10.0)
    keep_hashes: shown(bool, "Whether the hashes of closed tasks stay taken.", False)


class ProjectWithCounts(Project):
    """A project with its live counts."""

    waiting_task_count: shown(int, "Tasks that wait for a worker.", 120)
    assigned_task_count: shown(int, "Tasks that workers hold now.", 4)
    awaiting_verification_count: shown(int, "Tasks done by somebody that wait for another worker's verification.", 0)
    failed_task_count: shown(int, "Tasks that have failed for good.", 1)
    closed_task_count: shown(int, "Tasks that are done.", 42)


class Script(Struct):
    """A script that a job brings along."""

    source: shown(str, "The script.", "#!/bin/sh\necho $TRACKER_VAR_branch\n")
    md5: shown(str, "MD5 of the source, in hexadecimal: for caches.", "e8b9b8d4eb4eaf2a4bb8a0d3b05a1b37")


class TaskJob(Struct):
    """What whoever runs a job's task needs. Plain tasks have none."""

    id: shown(str, "The job's id.", EXAMPLE_JOB)
    template: shown(str, "The name of its template.", "build")
    script: Annotated[Script | None, Meta(description="Its script, if it brings one.")]
    runas: shown(str, "The command line that runs the script: `%script%` is its file. Empty: it runs itself.", "")
    arguments: shown(list[str], "The arguments, in their order.", ["fast"])
    variables: shown(dict[str, Any], "The values of the variables.", {"branch": "main"})
    env: shown(dict[str, str], "The environment that the template adds.", {"LANG": "C.UTF-8"})
    timeout: shown(float, "Seconds that it may run.", 60.0)


class Task(Struct):
    """An assigned task, with its project."""

    id: shown(int, "The task's number, by which it is released. No number is used twice.", 1)
    priority: shown(int, "Higher is assigned first.", 1)
    assignee: shown(int, "The worker that holds it: the caller.", 1)
    retries: shown(int, "Attempts that have failed.", 0)
    max_retries: shown(int, "Failed attempts after which it counts as failed.", 3)
    status: shown(int, "1: new. (2 is failed; such a task is not assigned.)", 1)
    recipe: shown(str, "What is to be done.", "https://example.org/")
    max_assign_time: shown(int, "Seconds that the worker may hold it; 0 means the tracker's default.", 600)
    assign_time: shown(int, "When it was assigned, in unix seconds.", 1559397394)
    verification_count: shown(int, "Different workers that must release it with the same `verification`.", 0)
    project: Project
    job: TaskJob | UnsetType = UNSET


class TemplateVariable(Struct):
    """A variable that a template declares."""

    name: shown(str, "Its name.", "branch")
    value: shown(Any, "Its value, unless the job brings one; null for none.", "main")
    required: shown(bool, "Whether it must have a value.", True)
    allowed: shown(list[Any], "The values that it may have; empty for any.", [])
    description: shown(str, "What it is for.", "What to build.")


class TemplateArgument(Struct):
    """An argument that a template declares."""

    order: shown(int, "Its place among the arguments.", 0)
    type: shown(str, "`fixed`: it has its own value. Anything else: the job brings it.", "select")
    label: shown(str, "What a form calls it.", "Which tests")
    value: shown(Any, "The value of a fixed one; what a form offers for another one.", "fast")
    options: shown(list[Any], "What a form lets people choose from.", ["fast", "all"])


class ListedTemplate(Struct):
    """A named way to make a job, as a list shows it."""

    id: shown(int, "The template's number.", 1)
    project: shown(int, "The project whose queue gets the jobs' tasks.", 1)
    name: shown(str, "Its name.", "build")
    description: shown(str, "What it is for.", "Builds a branch.")
    runas: shown(str, "The command line that runs the script: `%script%` is its file. Empty: it runs itself.", "")
    variables: Annotated[list[TemplateVariable], Meta(description="The variables that it declares.")]
    undeclared: shown(bool, "Whether a job may bring variables that are not declared.", False)
    arguments: Annotated[list[TemplateArgument], Meta(description="The arguments that it declares.")]
    env: shown(dict[str, str], "What is added to the environment of whoever runs a job.", {"LANG": "C.UTF-8"})
    timeout: shown(float | None, "Seconds that a job may run; null means the tracker's default.", 60.0)
    max_retries: shown(int, "Failed attempts after which a job has failed.", 0)
    priority: shown(int, "Higher is assigned first.", 0)
    api: shown(bool, "Whether other programs may trigger it by its name.", True)
    has_key: shown(bool, "Whether a program that does so needs a key.", True)
    keep_count: shown(int | None, "Ended jobs that are kept; null for all.", 100)
    keep_time: shown(int | None, "Seconds for which they are kept; null means the tracker's default.", 86400)
    created: shown(int, "When it was made, in unix seconds.", 1559396382)
    updated: shown(int, "When it was changed last, in unix seconds.", 1559396382)


class Template(ListedTemplate):
    """A named way to make a job."""

    recipe: shown(str, "The tasks' recipe; `{name}` stands for a variable.", "build {branch}")
    script: shown(str, "The script that its jobs bring along; empty for none.", "#!/bin/sh\necho $TRACKER_VAR_branch\n")


class NewTemplate(Template):
    """A template that was just made."""

    secret: Annotated[str, Meta(description="Opens this template alone. Shown only this once.", examples=["c0ffee"])]


class ListedJob(Struct):
    """A job as lists show it."""

    id: shown(str, "The job's id.", EXAMPLE_JOB)
    name: shown(str, "The name of its template, or of its workflow.", "build")
    template: shown(int | None, "Its template's number; null for the run of a workflow.", 1)
    project: shown(int, "The project's number.", 1)
    state: shown(
        Literal["waiting", "assigned", "succeeded", "failed", "timed_out", "cancelled"],
        "`waiting`, `assigned`; or ended, for ever: `succeeded`, `failed`, `timed_out`, `cancelled`.",
        "waiting",
    )
    task: shown(int | None, "The number of its task, which is gone when it has ended.", 4)
    timeout: shown(float, "Seconds that it may run.", 60.0)
    origin: shown(str, "Through which door it came: `native`, `page`, a dialect's name, `workflow`.", "native")
    attempts: shown(int, "How often it was assigned; of the run of a workflow, how many steps have followed.", 1)
    assignee: shown(int | None, "The worker of the present or last attempt; null while it waits.", 1)
    created: shown(float, "When it was made, in unix seconds.", 1559396382.5)
    started: shown(float | None, "When it was assigned for the first time.", 1559396383.5)
    finished: shown(float | None, "When it ended.", 1559396384.5)
    reported: shown(str | None, "The state that its result speaks of.", "success")
    warned: shown(bool, "Whether something of level warn or error was logged, or its result reports a warning.", False)
    retry_of: shown(str | None, "The job of which it is a retry.", EXAMPLE_JOB)
    workflow_job: shown(str | None, "The run of a workflow of which it is a step.", EXAMPLE_JOB)


class Job(ListedJob):
    """A task that somebody wants to hear back from, or the run of a workflow."""

    variables: shown(dict[str, Any], "The values of its variables.", {"branch": "main"})
    arguments: shown(list[Any], "Its arguments, in their order.", ["fast"])
    result: shown(Any, "The `output` of the last attempt's release.", {"code": 0, "lastline": "ok"})
    output: shown(Any, "What the result hands on, such as to the next step of a workflow.", None)


class JobEntry(Struct):
    """A line of a job's log."""

    id: shown(int, "The line's number within the log, for `after`.", 1)
    time: shown(int, "When, in unix seconds, as the worker says.", 1559397394)
    scope: shown(str, "Which part of the worker speaks; `tracker` for the tracker's own lines.", "tracker")
    message: shown(str, "The line.", "created by manager alice")
    worker: shown(int, "The worker's number; 0 is the tracker.", 0)
    level: shown(str, "`error`, `warn`, `info`, `debug` or `trace`.", "info")


class WorkflowEdge(Struct):
    """Which template follows another one."""

    template: shown(int, "The template that has ended.", 1)
    ending: shown(str, "In which way: `success`, `failure`, `timeout` or `cancelled`.", "failure")
    target: shown(int, "The template that follows.", 1)


class Workflow(Struct):
    """Templates that follow one another."""

    id: shown(int, "The workflow's number.", 1)
    project: shown(int, "The project's number.", 1)
    name: shown(str, "Its name.", "build and try again")
    start: shown(int, "The template that it starts with.", 1)
    created: shown(int, "When it was made, in unix seconds.", 1559396382)
    edges: Annotated[list[WorkflowEdge], Meta(description="Which templates follow which.")]


class NewWorkflow(Workflow):
    """A workflow that was just made."""

    secret: Annotated[str, Meta(description="Opens this workflow alone. Shown only this once.", examples=["c0ffee"])]


class LogEntry(Struct):
    """A line that a worker has logged."""

    id: shown(int, "The entry's number, for `before`.", 7)
    message: shown(str, "The line.", "Fetched https://example.org/")
    timestamp: shown(int, "The worker's time, in unix seconds.", 1559393394)
    data: shown(str, "JSON text with the scope and the worker.", '{"scope":"fetch","worker":"my laptop (1)"}')
    level: shown(int, "3 error, 4 warn, 5 info, 6 debug, 7 trace.", 5)


class Access(Struct):
    """What a worker may do in a project, or asks to be allowed."""

    submit: shown(bool, "Whether it may submit tasks.", True)
    assign: shown(bool, "Whether it may be assigned tasks.", True)
    request: shown(bool, "Whether this still waits for a manager.", True)
    worker: PublicWorker
    project: shown(int, "The project's number.", 2)


class Snapshot(Struct):
    """The counts of a project at one moment."""

    new_task_count: shown(int, "Tasks that were waiting or assigned.", 124)
    failed_task_count: shown(int, "Tasks that had failed for good.", 1)
    closed_task_count: shown(int, "Tasks that had been done until then.", 42)
    worker_access_count: shown(int, "Workers with access.", 3)
    awaiting_verification_count: shown(int, "Tasks that waited for another worker's verification.", 0)
    time_stamp: shown(int, "The moment, in unix seconds.", 1559397394)


class Assignee(Struct):
    """A worker that holds tasks of a project."""

    assignee: shown(str, "The worker's alias; `unassigned` for tasks that nobody holds.", "my laptop")
    task_count: shown(int, "How many it holds.", 4)


class LinesReport(Struct):
    """What became of the lines of an upload. The number of a line counts the blank ones too."""

    line_count: shown(int, "Lines that are not blank.", 3)
    refused_count: shown(int, "Lines that are no task.", 1)
    refused: shown(
        list[tuple[int, str]], "The first of them: number and reason.", [[3, "max_retries: Expected int >= 0"]]
    )
    duplicate_count: shown(int, "Tasks that were skipped until now, as another one has their hash.", 1)
    duplicates: shown(list[int], "The numbers of the first such lines.", [2])


class LongOperation(Struct):
    """What was begun to be done to many tasks, a piece at a time; a restart of the tracker does not end it."""

    id: shown(int, "Its number.", 1)
    project: shown(int, "The project whose tasks they are.", 1)
    kind: shown(str, "What is done, such as `submit_lines`.", "submit_lines")
    state: shown(Literal["running", "finished"], "Whether it is still going on.", "finished")
    expected: shown(int | None, "How many tasks it is about, duplicates included; null when nobody can know.", 2)
    affected: shown(int, "To how many it was done until now.", 1)
    started: shown(int, "When it began, in unix seconds.", 1559396382)
    finished: shown(int | None, "When it ended, in unix seconds; null until then.", 1559396383)
    report: Annotated[LinesReport | None, Meta(description="Of submitted lines; null for anything else.")]


class Manager(Struct):
    """A manager."""

    id: shown(int, "The manager's number.", 1)
    username: shown(str, "Its name.", "alice")
    tracker_admin: shown(bool, "Whether it is a tracker admin, who has every role in every project.", True)
    register_time: shown(int, "When it registered, in unix seconds.", 1559396382)


class ProjectManager(Struct):
    """A manager and its roles in a project."""

    manager: Manager
    role: shown(int, "Sum of READ 1, EDIT 2, MANAGE_ACCESS 4, SECRET 8, MAINTENANCE 16.", 31)


class Account(Struct):
    """Who is logged in."""

    logged_in: shown(bool, "Whether anybody is.", True)
    manager: Annotated[Manager | None, Meta(description="Who; null for nobody.")]


# ── What the types do not say ─────────────────────────────────────────────────────────────────────────────────────────

# The fields of what the code decodes, by type. Names in braces are settings, whose value is put in.
LINE = {
    "priority": "Priority of the tasks that do not say otherwise; the like for `max_retries`, `max_assign_time` and"
    " `verification_count`.",
    "max_retries": "Failed attempts after which such a task counts as failed.",
    "max_assign_time": "Seconds that a worker may hold such a task. 0 means {default_max_assign_time} (setting"
    " `default_max_assign_time`).",
    "verification_count": "Different workers that must agree on such a task.",
    "once": "Whether a recipe is its task's `unique_string`, if the line gives no hash: a task with the same recipe is"
    " then a duplicate.",
    "format": "`text`: each line is a recipe. `json`: each line is an object. `auto`: an object if it begins with a"
    " brace, else a recipe.",
    "token": "A text of the client's own, unlike that of any other upload: a repeated call with it submits nothing.",
    "first_line": "The number of the first line, for a client that sends a file in parts. From 2 on it is a later part"
    " of a file, and is taken as it stands: what it begins with does not say that it is packed, or no text.",
}
TASK = {
    "project": "The project whose queue gets the task.",
    "recipe": "What is to be done, as the project's workers understand it: a URL, JSON, a command.",
    "priority": "Higher is assigned first; within one priority the oldest task.",
    "max_retries": "Failed attempts after which the task counts as failed. 0 and 1 both mean one attempt.",
    "max_assign_time": "Seconds that a worker may hold the task before it goes to another one. 0 means"
    " {default_max_assign_time} (setting `default_max_assign_time`).",
    "verification_count": "Different workers that must release the task with the same `verification` before it is"
    " closed. 0 and 1 both mean one.",
    "hash64": "64 bits, signed or unsigned, that keep another task with the same hash out of the project. 0 for none.",
    "hash_u64": "Another spelling of `hash64`.",
    "unique_string": "Text from which the hash is made. Give this or `hash64`, not both.",
    "unique_str": "Another spelling of `unique_string`.",
}
WAIT = {
    "wait": "Seconds to wait for a task, if there is none now. More than {max_wait} (setting `max_wait`) counts as"
    " that. 0 does not wait.",
    "count": "Tasks to take at once. The answer is then a list, `tasks`, also of one. More than {max_count} (setting"
    " `max_count`) counts as that; long recipes may end the list early. 0 takes one, `task`.",
}
MEANING: dict[str, dict[str, str]] = {
    "SubmitBody": TASK,
    "BulkTask": TASK,
    "BulkSubmitBody": {"requests": "The tasks, all of one project, at most {max_bulk} (setting `max_bulk`)."},
    "UploadQuery": LINE,
    "AssignQuery": WAIT,
    "AssignFromQuery": {**WAIT, "project": "A project's number. Given once for each project: `project=1&project=2`."},
    "ReleaseBody": {
        "task_id": "The task's number.",
        "result": "0: done. 1: failed; the task is retried until `max_retries`. 2: skipped; the task waits again as if"
        " the worker had never had it.",
        "verification": "Hash of the result, 64 bits, signed or unsigned. Counts when the task needs several"
        " verifications: it is closed when enough workers have given the same.",
        "output": "What has come of it, any JSON: the result of the task's job, if it has one. Of an object, `state`"
        " (`failure` and `error` fail the job, `warning` marks it) and `output` are looked at, or else `lastline`, if"
        ' that is JSON: an array is the output, `{{"state": …, "data": …}}` gives both. With `killed` true a failed job'
        " has timed out.",
    },
    "BulkReleaseBody": {"releases": "The releases, at most {max_count} (setting `max_count`)."},
    "LogBody": {
        "scope": "Which part of the worker speaks.",
        "timestamp": "The worker's time, in unix seconds.",
        "message": "The line. Required, in one of its two spellings.",
        "Message": "Another spelling of `message`.",
        "task_id": "The task that the line is about. Counts when the worker holds it.",
    },
    "LogsBody": {
        "level": "Only entries of this level: 3 error, 4 warn, 5 info, 6 debug, 7 trace. Required, unless `max_level`"
        " is given.",
        "since": "Only entries after this moment, in unix seconds.",
        "max_level": "Entries of level 1 to this one.",
        "before": "Only entries older than the one with this `id`: the last of a page gives the next page.",
        "limit": "The most entries to answer with; very long ones may end the page early.",
    },
    "TaskLogBody": {
        "task_id": "The task's number.",
        "entries": "The lines, the oldest first. None at all just asks whether the task is still held.",
        "first": "The number of the first of these lines within this assignment, counted from 0. Lines of a job that"
        " are numbered are stored once, so a request may be repeated.",
    },
    "TaskEntry": {
        "message": "The line.",
        "timestamp": "The worker's time, in unix seconds.",
        "level": "Its level. A job's log keeps every one.",
        "scope": "Which part of the worker speaks.",
    },
    "TemplateBody": {
        "project": "The project whose queue gets the jobs' tasks. Required in a new template, which stays in it.",
        "name": "Its name, unlike any other template's of the project. Required in a new template.",
        "description": "What it is for.",
        "recipe": "The tasks' recipe; `{{name}}` stands for the variable's value. Empty: JSON of the template's name,"
        " the variables and the arguments.",
        "script": "A script that its jobs bring along. Empty for none.",
        "runas": "The command line that runs the script, `%script%` being its file. Empty: it runs itself.",
        "variables": "The variables that it declares.",
        "undeclared": "Whether a job may bring others as well. True in a new template.",
        "arguments": "The arguments that it declares.",
        "env": "What is added to the environment of whoever runs a job: names and values.",
        "timeout": "Seconds that a job may run. Null means {default_job_timeout} (setting `default_job_timeout`).",
        "max_retries": "Failed attempts after which a job has failed. 0 and 1 both mean one attempt.",
        "priority": "Higher is assigned first.",
        "api": "Whether other programs may trigger it by its name, which then no other such template has.",
        "key": "The key that those programs need. Empty for none.",
        "keep_count": "Ended jobs that are kept. Null for all of them.",
        "keep_time": "Seconds for which they are kept. Null means {job_retention} (setting `job_retention`).",
    },
    "Variable": {
        "name": "Its name.",
        "value": "Its value, unless the job brings one. Null for none.",
        "required": "Whether it must have a value that is neither null nor empty.",
        "allowed": "The values that it may have. Empty for any.",
        "description": "What it is for.",
    },
    "Argument": {
        "order": "Its place among the arguments.",
        "type": "`fixed`: it has its own value. Anything else: the job brings it, and a form asks for it in this way.",
        "label": "What a form calls it.",
        "value": "The value of a fixed one; what a form offers for another one.",
        "options": "What a form lets people choose from.",
    },
    "TriggerBody": {
        "variables": "Values of variables, by their names.",
        "arguments": "The arguments that are not fixed, in their order: null for an optional one. More are ignored.",
    },
    "JobsQuery": {
        "project": "Only jobs of this project. Required of a worker that names no template.",
        "template": "Only jobs of this template, which may have been deleted.",
        "state": "Only jobs in this state.",
        "from": "Only jobs made at this moment or later, in unix seconds.",
        "to": "Only jobs made until this moment, in unix seconds.",
        "before": "Where the list goes on: the `before` of the last answer.",
        "limit": "The most jobs to answer with.",
    },
    "LinesQuery": {
        "after": "Only lines after the one with this `id`.",
        "limit": "The most lines to answer with; very long ones may end the answer early.",
    },
    "WorkflowBody": {
        "project": "Its project. Required in a new workflow, which stays in it.",
        "name": "Its name, unlike any other workflow's of the project. Required in a new workflow.",
        "start": "The template that it starts with. Required in a new workflow.",
        "edges": "Which templates follow which. A change replaces them all.",
    },
    "Edge": {
        "template": "The template whose step has ended.",
        "ending": "In which way it has ended.",
        "target": "The template that follows, with the step's output as its arguments.",
    },
    "AliasBody": {"alias": "The worker's name. Empty means `{default_alias}`; `unassigned` is reserved."},
    "PauseBody": {"worker": "The worker's number.", "paused": "Whether it is to be assigned nothing."},
    "ProjectBody": {
        "name": "Its name, unlike any other project's. Required in a new project.",
        "priority": "Higher is served first to a worker that asks several projects. 1 in a new project.",
        "clone_url": "Where workers may clone its code from.",
        "git_repo": "Full name of the repository whose pushes set `version`, such as `alice/first`.",
        "version": "The version of its code that workers are to use.",
        "motd": "Message of the day.",
        "public": "Whether any worker is assigned its tasks. For a tracker admin to set.",
        "hidden": "Whether only managers with READ see it. It cannot be public at once.",
        "paused": "Whether nothing is assigned.",
        "chain": "The project to which its closed tasks are submitted. 0 for none.",
        "assign_rate": "Tasks assigned per second at most. 0 or null for unlimited.",
        "submit_rate": "Tasks submitted per second at most. 0 or null for unlimited.",
        "keep_hashes": "Whether the hashes of closed tasks stay taken, so that each is handed out once for ever.",
    },
    "AccessBody": {
        "project": "The project's number.",
        "assign": "Whether to ask for ASSIGN: to be assigned its tasks.",
        "submit": "Whether to ask for SUBMIT: to submit tasks. At least one of the two.",
    },
    "SecretBody": {"secret": "The secret: any text, usually JSON."},
    "WebhookSecretBody": {"webhook_secret": "The key, as it was given to the git host."},
    "LastSnapshots": {"count": "How many."},
    "SnapshotsBetween": {"from": "The first moment, in unix seconds.", "to": "The last moment, in unix seconds."},
    "PushBody": {
        "ref": "The branch: `refs/heads/` and one of {production_branches} (setting `production_branches`).",
        "after": "The commit that becomes the project's version.",
        "repository": "The repository that was pushed to.",
        "deleted": "Whether the branch was deleted, which is refused.",
    },
    "Repository": {"full_name": "The project's `git_repo`, in upper or lower case."},
    "RegisterBody": {
        "username": "The manager's name: no blanks at its ends, unlike any other manager's.",
        "password": "The password.",
    },
    "LoginBody": {"username": "The manager's name.", "password": "The manager's password."},
    "RoleBody": {
        "manager": "The manager's number.",
        "role": "Sum of READ 1 (see a hidden project), EDIT 2 (change it), MANAGE_ACCESS 4 (grant access and roles),"
        " SECRET 8 (see and set secrets), MAINTENANCE 16 (reset tasks). 0 takes all away.",
    },
}

# Limits that the code checks after decoding, as msgspec knows none beyond 63 bits.
BITS_64 = {"minimum": -(2**63), "maximum": 2**64 - 1}
LIMITS = dict.fromkeys(("hash64", "hash_u64", "verification"), BITS_64)

Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PATH = {
    "project": "The project's number.",
    "worker": "The worker's number.",
    "manager": "The manager's number.",
    "level": "The level.",
    "operation": "The operation's number.",
    "template": "The template's number.",
    "workflow": "The workflow's number.",
    "job": "The job's id: `id` in the answer to `POST /template/trigger/{template}`. `$JOB` in the examples.",
}

SECTIONS = {
    "Workers": "Programs that do the work. Any program that sends HTTP is one.",
    "Projects": "A project is a queue of tasks with its settings.",
    "Access": "Which workers may submit to a project and be assigned its tasks. A public one assigns to any worker.",
    "Tasks": "The life of a task: submitted, assigned, released.",
    "Templates": "A template is a named way to make a job: a task that somebody wants to hear back from. A workflow is"
    " templates that follow one another.",
    "Jobs": "What has become of a job, its result and its log.",
    "Logs": "What workers have to say.",
    "Monitoring": "Counts of a project, now and over time. The live counts are also in `GET /project/get/{project}`.",
    "Git": "Follows the version of a project's code.",
    "Maintenance": "Changes to all tasks of a project, a piece at a time: workers go on meanwhile.",
    "Managers": "People. Roles are given per project; a tracker admin has them all.",
}

OTHER_SITE = "Another site's page caused the request."
OR_OTHER_SITE = "or another site's page caused the request."
NO_PROJECT = "There is no such project."
NOT_VISIBLE = "There is no such project, or it is hidden."
NO_TEMPLATE = "There is no such template, or its project is hidden."
NO_WORKFLOW = "There is no such workflow, or its project is hidden."
NO_JOB = "There is no such job, or its project is hidden."
RATE = "The project's rate limit is reached."
WORKERS_RATE = "A worker calls, and the project's rate limit is reached."
ATTEMPTS = "Too many attempts from this address."


def no_role(role: str) -> dict[int, str]:
    """Why a manager's call about a project may be refused."""
    return {403: f"The manager has no {role} role in the project, {OR_OTHER_SITE}", 404: NOT_VISIBLE}


def no_edit(missing: str, reads: bool = False) -> dict[int, str]:
    """Why a manager's call about something of a project may be refused."""
    who = "The manager has no EDIT role in the project"
    return {403: f"{who}." if reads else f"{who}, {OR_OTHER_SITE}", 404: missing}


def no_submit(missing: str, role: str, reads: bool = False) -> dict[int, str]:
    """Why a worker's or a manager's call about a job may be refused."""
    who = f"A worker without SUBMIT access to the project, a manager without the {role} role"
    return {403: f"{who}." if reads else f"{who}, {OR_OTHER_SITE}", 404: missing}


PUSH = {"ref": "refs/heads/main", "after": "c0ffee", "repository": {"full_name": "alice/first"}}
WEBHOOK_SECRET = "a long random text"
SIGNATURE = hmac.new(WEBHOOK_SECRET.encode(), json.dumps(PUSH).encode(), hashlib.sha256).hexdigest()
ANOTHER_LAPTOP = {
    **{"id": 2, "created": 1559396382, "alias": "another laptop", "paused": False},
    "secret": "ftZVO4w9Fc7bDuOISRaJL9P92ijkfvNah1Ldgc0a9f8=",
}
BOB = {"id": 2, "username": "bob", "tracker_admin": False, "register_time": 1559396382}
EXAMPLE_HEADERS = {"X-Hub-Signature-256": f"sha256={SIGNATURE}"}
SIGNATURE_HEADERS = {
    "X-Hub-Signature-256": "HMAC-SHA-256 of the raw body, in hexadecimal (GitHub).",
    "X-Gitea-Signature": "The same (Gitea).",
    "X-Gogs-Signature": "The same (Gogs).",
    "X-Hub-Signature": "HMAC-SHA-1 of the raw body, in hexadecimal (GitHub).",
}


class Operation(Struct, frozen=True):
    """What the code does not say of a call."""

    section: str
    who: str  # may make it
    answer: Any = None  # `content`: a Struct, a dict of its fields, a list of alternatives; None: there is none
    errors: dict[int, str] = {}
    anybody: bool | str = False  # whether it needs no credentials; the name of the setting that says so
    path: dict[str, Any] = {}
    query: dict[str, Any] = {}
    body: Any = None
    text: str = ""  # the body, of a call that takes lines of text
    headers: dict[str, str] = {}  # that the request may have, and their meaning
    not_ok: str = ""  # when `ok` is false although the status is 200
    empty: bool = False  # whether there is then no content
    message: str = ""  # when there is a message although the status is 200
    cookie: str = ""  # what the answer does to the session cookie


ANYBODY = "Anybody."
SEES = "Anybody; of a hidden project only managers with the role READ."
WORKER = "Any worker."
MANAGER = "Any manager."
ADMIN = "A tracker admin."


def manager_with(role: str) -> str:
    return f"A manager with the role {role} in the project."


def submitter_or(role: str) -> str:
    return f"A worker with SUBMIT access to the project, or a manager with the role {role} in it."


TEMPLATE = {
    **{"project": 1, "name": "build", "description": "Builds a branch.", "recipe": "build {branch}"},
    **{
        "script": "#!/bin/sh\necho $TRACKER_VAR_branch\n",
        "env": {"LANG": "C.UTF-8"},
        "timeout": 60,
        "undeclared": False,
    },
    "variables": [{"name": "branch", "value": "main", "required": True}],
    "arguments": [{"order": 0, "type": "select", "label": "Which tests", "value": "fast", "options": ["fast", "all"]}],
}


OPERATIONS: dict[str, Operation] = {
    "POST /worker/create": Operation(
        "Workers",
        "Anybody, if the setting `open_worker_registration` is on; otherwise managers.",
        {"worker": shown(NewWorker, "The new worker.", ANOTHER_LAPTOP)},
        {403: OTHER_SITE},
        anybody="open_worker_registration",
        body={"alias": "another laptop"},
    ),
    "GET /worker/get/{worker}": Operation(
        "Workers", ANYBODY, {"worker": PublicWorker}, {404: "There is no such worker."}, anybody=True
    ),
    "POST /worker/update": Operation("Workers", "The worker itself.", body={"alias": "my old laptop"}),
    "POST /worker/set_paused": Operation(
        "Workers",
        ADMIN,
        errors={403: f"The manager is no tracker admin, {OR_OTHER_SITE}", 404: "There is no such worker."},
        body={"worker": 2, "paused": True},
    ),
    "GET /worker/stats": Operation("Workers", ANYBODY, {"stats": list[WorkerStatistics]}, anybody=True),
    "GET /project/list": Operation("Projects", ANYBODY, {"projects": list[ProjectWithCounts]}, anybody=True),
    "GET /project/get/{project}": Operation(
        "Projects",
        SEES,
        ProjectWithCounts,
        {404: NOT_VISIBLE},
        anybody=True,
    ),
    "POST /project/create": Operation(
        "Projects",
        MANAGER,
        {"id": shown(int, "The new project's number.", 2)},
        {
            403: f"`public` without being a tracker admin; `chain` to a project without the EDIT role, {OR_OTHER_SITE}",
            404: "There is no project as given in `chain`.",
            409: "There is a project with this name.",
        },
        body={"name": "second", "public": True, "priority": 5, "assign_rate": 10},
    ),
    "POST /project/update/{project}": Operation(
        "Projects",
        manager_with("EDIT"),
        errors={
            403: "No EDIT role in the project, or none in the one given in `chain`, `public` without being a tracker"
            f" admin, {OR_OTHER_SITE}",
            404: "There is no such project, or it is hidden, or there is none as given in `chain`.",
            409: "There is a project with this name.",
        },
        body={"git_repo": "alice/first", "motd": "Be polite to the servers.", "paused": False},
    ),
    "POST /project/secret/{project}": Operation(
        "Projects", manager_with("SECRET"), errors=no_role("SECRET"), body={"secret": '{"api_key": "1234"}'}
    ),
    "GET /project/secret/{project}": Operation(
        "Projects",
        "A worker with granted ASSIGN access to the project, or a manager with the role SECRET in it.",
        {"secret": shown(str, "The project's secret; {} until somebody sets one.", '{"api_key": "1234"}')},
        {
            403: f"A worker without ASSIGN access to the project, a manager without the SECRET role, {OR_OTHER_SITE}",
            404: NOT_VISIBLE,
        },
    ),
    "POST /project/webhook_secret/{project}": Operation(
        "Projects", manager_with("SECRET"), errors=no_role("SECRET"), body={"webhook_secret": WEBHOOK_SECRET}
    ),
    "GET /project/webhook_secret/{project}": Operation(
        "Projects",
        manager_with("SECRET"),
        {"webhook_secret": shown(str, "The key; a random one until somebody sets another.", WEBHOOK_SECRET)},
        {403: "The manager has no SECRET role in the project.", 404: NOT_VISIBLE},
    ),
    "POST /project/request_access": Operation(
        "Access",
        WORKER,
        errors={404: NO_PROJECT, 409: "The worker has access, or has asked for it, already."},
        body={"project": 2, "assign": True, "submit": True},
    ),
    "GET /project/access_list/{project}": Operation(
        "Access",
        manager_with("MANAGE_ACCESS"),
        {"accesses": list[Access]},
        {403: "The manager has no MANAGE_ACCESS role in the project.", 404: NOT_VISIBLE},
        path={"project": 2},
    ),
    "POST /project/accept_request/{project}/{worker}": Operation(
        "Access",
        manager_with("MANAGE_ACCESS"),
        errors={
            403: f"The manager has no MANAGE_ACCESS role in the project, {OR_OTHER_SITE}",
            404: "There is no such project, or it is hidden, or the worker has not asked for access.",
            409: "The worker has access already.",
        },
        path={"project": 2},
    ),
    "POST /project/reject_request/{project}/{worker}": Operation(
        "Access",
        manager_with("MANAGE_ACCESS"),
        errors={
            403: f"The manager has no MANAGE_ACCESS role in the project, {OR_OTHER_SITE}",
            404: "There is no such project, or it is hidden, or the worker has neither asked for nor got access.",
        },
        path={"project": 2},
    ),
    "POST /task/submit": Operation(
        "Tasks",
        "A worker with SUBMIT access to the project.",
        errors={
            403: "The worker has no SUBMIT access to the project.",
            404: NO_PROJECT,
            409: "A task with the same hash is in the project.",
            429: RATE,
        },
        body={
            "project": 1,
            "recipe": "https://example.org/",
            "priority": 1,
            "max_retries": 3,
            "unique_string": "https://example.org/",
        },
    ),
    "POST /task/bulk_submit": Operation(
        "Tasks",
        "A worker with SUBMIT access to the project.",
        {
            "submitted": shown(int, "Tasks that were stored.", 2),
            "duplicates": shown(int, "Tasks that were skipped, as another one has their hash.", 0),
        },
        {
            403: "The worker has no SUBMIT access to the project.",
            404: NO_PROJECT,
            413: "The body is larger than {max_bulk_body} KiB (setting `max_bulk_body`); for a worker that has no"
            " SUBMIT access to any project, than {max_body} KiB (setting `max_body`).",
            429: RATE,
        },
        body={"requests": [{"project": 1, "recipe": f"https://example.org/{page}"} for page in (1, 2)]},
    ),
    "POST /task/submit_lines/{project}": Operation(
        "Tasks",
        "A worker with SUBMIT access to the project.",
        {"operation": shown(int, "The number of the operation that submits the lines.", 1)},
        {
            403: "The worker has no SUBMIT access to the project.",
            404: NO_PROJECT,
            413: "The body, or what it unpacks to, is larger than {max_bulk_body} KiB (setting `max_bulk_body`).",
            429: RATE,
        },
        query={"priority": 2, "token": "urls-1"},
        text='https://example.org/one\n{"recipe": "https://example.org/two", "priority": 3}\n',
    ),
    "GET /operation/{operation}": Operation(
        "Tasks",
        "The worker or manager that began it; managers with READ in the project.",
        {"operation": LongOperation},
        {
            403: "The manager has no READ role in the project.",
            404: "There is no such operation, it is forgotten, it is another worker's, or its project is hidden.",
        },
    ),
    "GET /task/get/{project}": Operation(
        "Tasks",
        "A worker with ASSIGN access to the project; any worker if the project is public.",
        [{"task": Task}, {"tasks": list[Task]}],
        {
            403: "The worker has no ASSIGN access to the project, or is paused.",
            404: NO_PROJECT,
            429: "There is a task, but the project's rate limit is reached.",
        },
        not_ok="False when there is no task.",
        empty=True,
        message="Says that there is no task.",
    ),
    "POST /task/release": Operation(
        "Tasks",
        "The worker that holds the task; for others nothing changes.",
        {"updated": shown(bool, "Whether the task was closed, failed or skipped.", True)},
        {404: "There has never been such a task."},
        body={"task_id": 1, "result": 0, "verification": -32315129},
        message="Says why `updated` is false.",
    ),
    "GET /task/get": Operation(
        "Tasks",
        "A worker with ASSIGN access to each of the projects that is not public.",
        [{"tasks": list[Task]}, {"task": Task}],
        {
            403: "The worker has no ASSIGN access to one of the projects, or is paused.",
            404: "There is no such project.",
            429: "There is a task, but the rate limit of its project is reached.",
        },
        query={"project": [1, 2], "wait": 5, "count": 10},
        not_ok="False when there is no task.",
        empty=True,
        message="Says that there is no task.",
    ),
    "POST /task/log": Operation(
        "Tasks",
        "The worker that holds the task; others learn that they do not.",
        {
            "held": shown(bool, "Whether the caller holds the task. If not, somebody took it away: stop.", True),
            "stored": shown(int, "Lines that were new.", 2),
        },
        {404: "There has never been such a task."},
        body={
            "task_id": 2,
            "first": 0,
            "entries": [
                {"message": "Fetching https://example.org/1", "timestamp": 1559393394},
                {"message": "It takes long", "timestamp": 1559393399, "level": "warn"},
            ],
        },
    ),
    "POST /task/bulk_release": Operation(
        "Tasks",
        "The worker that holds the tasks; for others nothing changes.",
        {"updated": shown(list[bool], "Whether each task was closed, failed or skipped.", [True, True])},
        {404: "There has never been one of the tasks. Nothing is released."},
        body={"releases": [{"task_id": 2, "result": 0}, {"task_id": 3, "result": 2}]},
    ),
    "POST /template/create": Operation(
        "Templates",
        manager_with("EDIT"),
        {"template": NewTemplate},
        {
            **no_role("EDIT"),
            409: "The project has a template of this name, or another one may be triggered by this name.",
        },
        body=TEMPLATE,
    ),
    "POST /template/update/{template}": Operation(
        "Templates",
        manager_with("EDIT"),
        errors={
            **no_edit(NO_TEMPLATE),
            409: "The project has a template of this name, or another one may be triggered by this name.",
        },
        body={"api": True, "key": "secure123", "keep_count": 100, "keep_time": 86400},
    ),
    "GET /template/get/{template}": Operation(
        "Templates", manager_with("EDIT"), {"template": Template}, no_edit(NO_TEMPLATE, reads=True)
    ),
    "GET /template/list/{project}": Operation(
        "Templates", manager_with("EDIT"), {"templates": list[ListedTemplate]}, no_edit(NOT_VISIBLE, reads=True)
    ),
    "POST /template/rotate_secret/{template}": Operation(
        "Templates",
        manager_with("EDIT"),
        {"secret": shown(str, "The new secret, shown only this once.", "c0ffee")},
        no_edit(NO_TEMPLATE),
    ),
    "POST /template/trigger/{template}": Operation(
        "Templates",
        submitter_or("EDIT"),
        {"job": Job},
        {**no_submit(NO_TEMPLATE, "EDIT"), 429: WORKERS_RATE},
        body={"variables": {"branch": "main"}, "arguments": ["fast"]},
    ),
    "POST /workflow/create": Operation(
        "Templates",
        "A manager with the role EDIT in the project, and in those of the templates.",
        {"workflow": NewWorkflow},
        {**no_role("EDIT"), 409: "The project has a workflow of this name."},
        body={
            "project": 1,
            "name": "build and try again",
            "start": 1,
            "edges": [{"template": 1, "ending": "failure", "target": 1}],
        },
    ),
    "POST /workflow/update/{workflow}": Operation(
        "Templates",
        "A manager with the role EDIT in the project, and in those of the templates.",
        errors={**no_edit(NO_WORKFLOW), 409: "The project has a workflow of this name."},
        body={"name": "build stubbornly"},
    ),
    "GET /workflow/get/{workflow}": Operation(
        "Templates", manager_with("EDIT"), {"workflow": Workflow}, no_edit(NO_WORKFLOW, reads=True)
    ),
    "GET /workflow/list/{project}": Operation(
        "Templates", manager_with("EDIT"), {"workflows": list[Workflow]}, no_edit(NOT_VISIBLE, reads=True)
    ),
    "POST /workflow/rotate_secret/{workflow}": Operation(
        "Templates",
        manager_with("EDIT"),
        {"secret": shown(str, "The new secret, shown only this once.", "c0ffee")},
        no_edit(NO_WORKFLOW),
    ),
    "POST /workflow/trigger/{workflow}": Operation(
        "Templates",
        submitter_or("EDIT"),
        {"job": Job},
        {
            **no_submit(NO_WORKFLOW, "EDIT"),
            409: "The template that it starts with was deleted.",
            429: WORKERS_RATE,
        },
        body={"variables": {"branch": "main"}, "arguments": ["fast"]},
    ),
    "POST /workflow/delete/{workflow}": Operation("Templates", manager_with("EDIT"), errors=no_edit(NO_WORKFLOW)),
    "POST /template/delete/{template}": Operation("Templates", manager_with("EDIT"), errors=no_edit(NO_TEMPLATE)),
    "GET /job/get/{job}": Operation("Jobs", submitter_or("READ"), {"job": Job}, no_submit(NO_JOB, "READ", reads=True)),
    "GET /job/log/{job}": Operation(
        "Jobs",
        submitter_or("READ"),
        {"entries": list[JobEntry]},
        no_submit(NO_JOB, "READ", reads=True),
    ),
    "GET /job/list": Operation(
        "Jobs",
        "A worker with SUBMIT access to the project, or a manager with the role READ in it. Of all projects: managers.",
        {
            "jobs": list[ListedJob],
            "before": shown(int | None, "What continues the list; null at its end.", 7),
        },
        {
            403: "A worker without SUBMIT access to the project, a manager without the READ role.",
            404: "There is no such project or template, or it is hidden.",
        },
        query={"project": 1, "state": "waiting", "limit": 2},
    ),
    "POST /job/cancel/{job}": Operation(
        "Jobs", submitter_or("EDIT"), errors={**no_submit(NO_JOB, "EDIT"), 409: "It has ended already."}
    ),
    "POST /job/retry/{job}": Operation(
        "Jobs",
        submitter_or("EDIT"),
        {"job": Job},
        {
            **no_submit(NO_JOB, "EDIT"),
            409: "It has not ended yet, or it is the run of a workflow that was deleted.",
            429: WORKERS_RATE,
        },
    ),
    "POST /log/{level}": Operation(
        "Logs",
        WORKER,
        errors={404: "There is no such level."},
        body={"scope": "fetch", "message": "Fetched https://example.org/", "timestamp": 1559393394},
    ),
    "GET /logs": Operation(
        "Logs",
        "Managers; anybody, if the setting `public_logs` is on.",
        {"logs": list[LogEntry]},
        {404: "There is no entry as given in `before`."},
        anybody="public_logs",
        query={"max_level": 5, "limit": 100},
    ),
    "POST /logs": Operation(
        "Logs",
        "Managers; anybody, if the setting `public_logs` is on.",
        {"logs": list[LogEntry]},
        {404: "There is no entry as given in `before`."},
        anybody="public_logs",
        body={"level": 5, "since": 1559390000},
    ),
    "GET /project/monitoring/{project}": Operation(
        "Monitoring",
        SEES,
        {"snapshots": list[Snapshot]},
        {404: NOT_VISIBLE},
        anybody=True,
        query={"count": 60},
    ),
    "GET /project/monitoring-between/{project}": Operation(
        "Monitoring",
        SEES,
        {"snapshots": list[Snapshot]},
        {404: NOT_VISIBLE},
        anybody=True,
        query={"from": 1559390000, "to": 4102444800},
    ),
    "GET /project/assignees/{project}": Operation(
        "Monitoring", SEES, {"assignees": list[Assignee]}, {404: NOT_VISIBLE}, anybody=True
    ),
    "POST /git/receivehook": Operation(
        "Git",
        "The git host that knows the project's webhook secret.",
        {
            "version": shown(str, "The new version.", "c0ffee"),
            "projects": shown(list[int], "The projects that have it now.", [1]),
        },
        {403: "The signature is missing, or does not match the webhook secret."},
        body=PUSH,
        headers=SIGNATURE_HEADERS,
    ),
    **{
        f"POST /project/{kind}/{{project}}": Operation(
            "Maintenance",
            manager_with("MAINTENANCE"),
            {"affected_tasks": shown(int, "How many tasks were changed.", 12)},
            no_role("MAINTENANCE"),
            path={"project": 2},
        )
        for kind in ("reset_failed_tasks", "reclaim_assigned_tasks", "hard_reset")
    },
    "POST /register": Operation(
        "Managers",
        "Anybody, if the setting `open_registration` is on; the first manager in any case.",
        {"manager": shown(Manager, "The new manager.", BOB)},
        {403: f"Registration is closed, {OR_OTHER_SITE}", 409: "The username is taken.", 429: ATTEMPTS},
        body={"username": "bob", "password": "battery staple"},
        cookie="Begins a session.",
    ),
    "POST /login": Operation(
        "Managers",
        ANYBODY,
        {"manager": Manager},
        {401: "Wrong username or password.", 403: OTHER_SITE, 429: "Too many attempts for this manager or address."},
        body={"username": "alice", "password": "correct horse"},
        cookie="Begins a session.",
    ),
    "GET /account": Operation("Managers", ANYBODY, Account, anybody=True, not_ok="False when nobody is logged in."),
    "GET /manager/list": Operation("Managers", MANAGER, {"managers": list[Manager]}),
    "GET /manager/list_for_project/{project}": Operation(
        "Managers", "A manager who may see the project.", {"managers": list[ProjectManager]}, {404: NOT_VISIBLE}
    ),
    "POST /manager/set_role_for_project/{project}": Operation(
        "Managers",
        manager_with("MANAGE_ACCESS"),
        errors={
            403: f"The manager has no MANAGE_ACCESS role in the project, {OR_OTHER_SITE}",
            404: "There is no such project, or it is hidden, or there is no such manager.",
        },
        body={"manager": 2, "role": 3},
    ),
    **{
        f"{method} /manager/{kind}/{{manager}}": Operation(
            "Managers",
            "Another tracker admin.",
            errors={
                403: f"The caller is no tracker admin, or is this manager, {OR_OTHER_SITE}",
                404: "There is no such manager.",
            },
        )
        for kind in ("promote", "demote")
        for method in ("POST", "GET")
    },
    **{
        f"{method} /logout": Operation(
            "Managers", ANYBODY, errors={403: OTHER_SITE}, anybody=True, cookie="Ends the session in the browser."
        )
        for method in ("POST", "GET")
    },
}
EXAMPLE_IDS = {"project": 1, "worker": 1, "manager": 2, "level": "info"}
EXAMPLE_IDS |= {"operation": 1, "template": 1, "workflow": 1, "job": EXAMPLE_JOB}

DESCRIPTION = """\
Hands out tasks to a crowd of workers and loses none.

Bodies are JSON whatever their content type says. Unknown fields are ignored. Every answer is an object: `ok`, a
`message` for people where there is something to say, and what was asked for in `content`. Times are unix seconds.
Integers may have 64 bits. An answer with `ok` true means that the change is on disk."""

COMMON_ERRORS = {
    400: "A value is missing, of the wrong type or out of range. The message begins with its name.",
    401: "X-Worker-ID and X-Secret are not those of a worker, or no manager is logged in.",
    413: "The body is larger than {max_body} KiB (setting `max_body`).",
    500: "A fault of the tracker, which its own log tells more about.",
    503: "The tracker is stopping, or cannot write to its database. Try again later.",
}
UNKNOWN_CALLER = {
    "worker": "X-Worker-ID and X-Secret are not those of a worker.",
    "session": "No manager is logged in.",
}
ERROR = {
    "title": "Error",
    "description": "Why a call was refused. Nothing has changed.",
    "type": "object",
    "properties": {
        "ok": {"const": False},
        "message": {
            "description": "The reason, for people.",
            "type": "string",
            "examples": ["Rate limit reached; please wait"],
        },
        "rate_limit_delay": {"description": "With status 429: seconds to wait.", "type": "number", "examples": [0.5]},
    },
    "required": ["ok", "message"],
}

WORKER_HEADERS = [{"worker_id": [], "worker_secret": []}]
SESSION = [{"session": []}]
SECURITY = {None: [], "worker": WORKER_HEADERS, "session": SESSION, "worker_or_session": WORKER_HEADERS + SESSION}

# ── The document ──────────────────────────────────────────────────────────────────────────────────────────────────────

Route = tuple[str, str, Callable]


def document(api: Iterable[Route], settings: Any, version: str) -> dict[str, Any]:
    """The OpenAPI document of these routes (methods, path, handler), of a tracker with these settings.

    Each handler has its docstring, and what it decodes as its attribute `takes`.
    """
    handlers = {f"{method} {path}": handler for methods, path, handler in api for method in methods.split()}
    words = {name: in_words(getattr(settings, name)) for name in settings.__struct_fields__}
    schemas = Schemas([handler.takes for handler in handlers.values()], words)
    paths: dict[str, dict[str, Any]] = {}
    for name in sorted(handlers, key=list(OPERATIONS).index):
        method, path = name.split()
        paths.setdefault(path, {})[method.lower()] = operation(name, handlers[name], settings, words, schemas)
    referred = json.dumps([paths, schemas.components])
    named = {name: one for name, one in schemas.components.items() if f'"{REF.format(name=name)}"' in referred}
    root = settings.root_path
    return {
        "openapi": "3.1.0",
        "info": {"title": "Task tracker", "version": version, "description": DESCRIPTION},
        "servers": [{"url": root or "/"}, {"url": f"{root}/api"}],
        "tags": [{"name": name, "description": description} for name, description in SECTIONS.items()],
        "paths": paths,
        "components": {
            "schemas": {**named, "Error": ERROR},
            "responses": common_responses(words),
            "securitySchemes": security_schemes(settings),
        },
    }


def in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return f"{value:,}".removesuffix(".0") if isinstance(value, int | float) else str(value)


class Schemas:
    """The JSON schema of every type, with the meaning of each field. `components` are those that have a name."""

    def __init__(self, takes: Iterable[Any], words: dict[str, str]):
        self.kinds = [Id, *(kind for one in takes for kind in (one.body, one.query, *(one.path or {}).values()))]
        self.kinds += [kind for one in OPERATIONS.values() for kind in answered_types(one.answer)]
        self.schemas, self.components = msgspec.json.schema_components(self.kinds, ref_template=REF)
        for name, meanings in MEANING.items():
            fields = self.components[name]["properties"]
            for field, meaning in meanings.items():
                fields[field] = {"description": meaning.format_map(words), **fields[field], **LIMITS.get(field, {})}

    def of(self, kind: Any) -> dict[str, Any]:
        return self.schemas[self.kinds.index(kind)]

    def component(self, kind: type[Struct]) -> dict[str, Any]:
        return self.components[kind.__name__]

    def content(self, answer: Any) -> dict[str, Any]:
        """The schema of an Operation's answer."""
        if isinstance(answer, list):
            return {"anyOf": [self.content(one) for one in answer]}
        if not isinstance(answer, dict):
            return self.of(answer)
        fields = {name: self.of(kind) for name, kind in answer.items()}
        return {"type": "object", "properties": fields, "required": list(fields)}


def answered_types(answer: Any) -> Iterator[Any]:
    if isinstance(answer, list | dict):
        for one in answer if isinstance(answer, list) else answer.values():
            yield from answered_types(one)
    elif answer is not None:
        yield answer


def operation(name: str, handler: Callable, settings: Any, words: dict[str, str], schemas: Schemas) -> dict[str, Any]:
    """One call, as an Operation Object."""
    about, takes = OPERATIONS[name], handler.takes
    summary, description = split_docstring(handler)
    security = SECURITY[takes.caller and takes.caller.__name__]
    if about.anybody is True or (about.anybody and getattr(settings, about.anybody)):
        # What comes first is what the example uses: whoever logs out, or asks who is logged in, has a session.
        security = [*security, {}] if about.cookie or about.not_ok else [{}, *security]
    parameters = [
        *(path_parameter(one, about, takes, schemas) for one in re.findall(r"{(\w+)}", name)),
        *query_parameters(about, takes, schemas),
        *header_parameters(about),
    ]
    body = {}
    if takes.body is not None:
        content = {"schema": schemas.of(takes.body), "example": about.body}
        body = {"requestBody": {"required": True, "content": {"application/json": content}}}
    if about.text:
        content = {"schema": {"type": "string"}, "example": about.text}
        body = {"requestBody": {"required": True, "content": {"text/plain": content}}}
    # What no id looks like is an unknown one, if ids are texts.
    texts = takes.path or {}
    decodes = bool(body) or any(one["in"] == "query" or one["name"] not in texts for one in parameters)
    return {
        "operationId": re.sub(r"\W+", "_", name.lower()).strip("_"),
        "tags": [about.section],
        "summary": summary,
        "description": description,
        "x-caller": about.who,
        "security": security,
        "parameters": parameters,
        **body,
        "responses": {
            str(takes.status): success(about, takes, schemas),
            **refusals(about, takes, security, decodes, words),
        },
    }


def split_docstring(handler: Callable) -> tuple[str, str]:
    """The first sentence, without its stop, and the rest, one line a paragraph, without who may call it."""
    text = "\n\n".join(" ".join(part.split()) for part in inspect.getdoc(handler).split("\n\n"))
    text = re.sub(r"\s+(Needs [A-Z_]+[^.]*|For (admins|managers|workers|those|the same) .*?)\.(?=\s|$)", "", text)
    summary, _, description = text.partition(". ") if ". " in text.split("\n")[0] else text.partition(".\n\n")
    return summary.removesuffix("."), description


def path_parameter(name: str, about: Operation, takes: Any, schemas: Schemas) -> dict[str, Any]:
    parameter = {"name": name, "in": "path", "required": True, "description": PATH[name]}
    kind = (takes.path or {}).get(name, Id)
    return {**parameter, "schema": schemas.of(kind), "example": {**EXAMPLE_IDS, **about.path}[name]}


def query_parameters(about: Operation, takes: Any, schemas: Schemas) -> Iterator[dict[str, Any]]:
    """The fields of what the query is decoded as. No query can say null."""
    component = schemas.component(takes.query) if takes.query else {"properties": {}, "required": []}
    for name, schema in sorted(component["properties"].items(), key=lambda item: item[0] not in component["required"]):
        schema = {key: value for key, value in schema.items() if key != "default" or value is not None}
        if "anyOf" in schema:
            [one] = [one for one in schema.pop("anyOf") if one != {"type": "null"}]
            schema = {**schema, **one}
        parameter = {"name": name, "in": "query", "required": name in component["required"]}
        parameter["description"] = schema.pop("description")
        example = {"example": about.query[name]} if name in about.query else {}
        yield {**parameter, "schema": schema, **example}


def header_parameters(about: Operation) -> Iterator[dict[str, Any]]:
    for name, meaning in about.headers.items():
        example = {"example": EXAMPLE_HEADERS[name]} if name in EXAMPLE_HEADERS else {}
        parameter = {"name": name, "in": "header", "required": False, "description": meaning}
        yield {**parameter, "schema": {"type": "string"}, **example}


def success(about: Operation, takes: Any, schemas: Schemas) -> dict[str, Any]:
    """The answer to a call that was accepted."""
    response: dict[str, Any] = {"description": "Done." if about.answer is None else "The answer."}
    if about.cookie:
        response["headers"] = {"Set-Cookie": {"description": about.cookie, "schema": {"type": "string"}}}
    if takes.status == 204:
        return {**response, "description": "Done. There is no body."}
    fields: dict[str, Any] = {
        "ok": {"type": "boolean", "description": about.not_ok} if about.not_ok else {"const": True}
    }
    if about.message:
        fields["message"] = {"type": "string", "description": about.message}
    if about.answer is not None:
        fields["content"] = schemas.content(about.answer)
    required = [name for name in fields if name == "ok" or (name == "content" and not about.empty)]
    schema = {"type": "object", "properties": fields, "required": required}
    example = {name: sample(one, schemas.components) for name, one in fields.items() if name != "message"}
    return {**response, "content": {"application/json": {"schema": schema, "example": example}}}


def sample(schema: dict[str, Any], components: dict[str, Any]) -> Any:
    """A value as the schema describes it."""
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return sample(components[schema["$ref"].rpartition("/")[2]], components)
    if "anyOf" in schema:
        return sample(next(one for one in schema["anyOf"] if one != {"type": "null"}), components)
    if schema.get("type") == "object":
        return {name: sample(one, components) for name, one in schema["properties"].items()}
    if schema.get("type") == "array":
        return [sample(schema["items"], components)]
    return schema.get("const", {"boolean": True, "integer": 1}.get(schema.get("type")))


def refusals(
    about: Operation, takes: Any, security: list[dict], decodes: bool, words: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The answers to a call that was refused, by status: what every such call may meet, and what this one may."""
    usual = {400: decodes, 401: security and {} not in security, 413: takes.body is not None, 500: True, 503: True}
    found = {status: {"$ref": f"#/components/responses/{status}"} for status, applies in usual.items() if applies}
    if 401 in found and takes.caller.__name__ in UNKNOWN_CALLER:
        found[401] = refusal(401, UNKNOWN_CALLER[takes.caller.__name__])
    found |= {status: refusal(status, why.format_map(words)) for status, why in about.errors.items()}
    return {str(status): found[status] for status in sorted(found)}


def refusal(status: int, why: str) -> dict[str, Any]:
    response = {"description": why, "content": {"application/json": {"schema": {"$ref": REF.format(name="Error")}}}}
    if status == 429:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait, rounded up.", "schema": {"type": "integer", "minimum": 1}}
        }
    return response


def common_responses(words: dict[str, str]) -> dict[str, Any]:
    """The refusals that many calls have in common."""
    return {str(status): refusal(status, why.format_map(words)) for status, why in COMMON_ERRORS.items()}


def security_schemes(settings: Any) -> dict[str, Any]:
    return {
        "worker_id": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Worker-ID",
            "description": "The worker's number: `id` in the answer to `POST /worker/create`. `$ID` in the examples.",
        },
        "worker_secret": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Secret",
            "description": "The worker's secret: `secret` in that answer. `$SECRET` in the examples.",
        },
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": settings.cookie_name,
            "description": "The session that `POST /login` or `POST /register` began. In the examples it is in curl's"
            " cookie file `cookies`.",
        },
    }


# ── Examples for the shell ────────────────────────────────────────────────────────────────────────────────────────────


def with_curl(document: dict[str, Any], url: str) -> dict[str, Any]:
    """The document with a curl example for each call, of a tracker at this URL (without a slash at its end)."""
    paths = {
        path: {
            method: {
                **one,
                "x-codeSamples": [{"lang": "Shell", "label": "curl", "source": curl(method, path, one, url)}],
            }
            for method, one in methods.items()
        }
        for path, methods in document["paths"].items()
    }
    return {**document, "paths": paths}


def curl(method: str, path: str, operation: dict[str, Any], url: str) -> str:
    """The command that makes the call of the document's examples."""
    given = [one for one in operation["parameters"] if "example" in one]
    ids = {one["name"]: quote(str(one["example"]), safe="") for one in given if one["in"] == "path"}
    query = urlencode({one["name"]: one["example"] for one in given if one["in"] == "query"}, doseq=True)
    body = operation.get("requestBody")
    words = ["curl", *(["-X", "POST"] if method == "post" and not body else [])]
    security = operation["security"][0] if operation["security"] else {}
    if "session" in security:
        words += ["-b", "cookies"]
    if "Set-Cookie" in next(iter(operation["responses"].values())).get("headers", {}):
        words += ["-c", "cookies"]
    address = shlex.quote(url + path.format(**ids) + "?" * bool(query) + query)
    job = "'\"$JOB\"'" if address.startswith("'") else "$JOB"
    lines = [" ".join([*words, address.replace(EXAMPLE_JOB, job)])]
    if "worker_id" in security:
        lines.append('-H "X-Worker-ID: $ID" -H "X-Secret: $SECRET"')
    lines += [f"-H {shlex.quote(one['name'] + ': ' + one['example'])}" for one in given if one["in"] == "header"]
    for kind, content in body["content"].items() if body else ():
        is_json = kind == "application/json"
        given = json.dumps(content["example"]) if is_json else content["example"]
        lines.append(f"{'-d' if is_json else '--data-binary'} {shlex.quote(given)}")
    return " \\\n  ".join(lines)


def start(url: str) -> str:
    """Commands that make, on a new tracker, what the examples are about: a manager, a project, a worker with access."""
    url = shlex.quote(url)
    return f"""\
curl -c cookies {url}/register -d '{{"username": "alice", "password": "correct horse"}}'
curl -b cookies {url}/project/create -d '{{"name": "first"}}'
WORKER=$(curl -s {url}/worker/create -d '{{"alias": "my laptop"}}')
ID=$(echo "$WORKER" | sed 's/.*"id":\\([0-9]*\\).*/\\1/')
SECRET=$(echo "$WORKER" | sed 's/.*"secret":"\\([^"]*\\)".*/\\1/')
curl -H "X-Worker-ID: $ID" -H "X-Secret: $SECRET" {url}/project/request_access \\
  -d '{{"project": 1, "assign": true, "submit": true}}'
curl -b cookies -X POST {url}/project/accept_request/1/$ID"""


# ── The page ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pages(document: dict[str, Any], url: str) -> dict[str, Any]:
    """What templates/docs.html shows: plain values, made from the document. `url` is where its reader sees the tracker.

    Texts may have `code` in backticks.
    """
    components = document["components"]
    calls: dict[str, dict[str, list]] = {tag["name"]: {} for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, one in methods.items():
            same = path + json.dumps({**one, "operationId": None})  # GET and POST that do the same are shown together
            calls[one["tags"][0]].setdefault(same, []).append((method, path, one))
    sections = [
        {**tag, "calls": [shown_call(same, components, url) for same in calls[tag["name"]].values()]}
        for tag in document["tags"]
    ]
    mentioned = shapes_of(components["schemas"], sections)
    return {
        "description": document["info"]["description"].split("\n\n"),
        "servers": [server["url"] for server in document["servers"]],
        "start": start(url),
        "schemes": list(components["securitySchemes"].values()),
        "error": {
            "rows": rows(components["schemas"]["Error"], decoded=False),
            "example": pretty(sample(components["schemas"]["Error"], {})),
            "common": [(status, phrase(status), one["description"]) for status, one in components["responses"].items()],
        },
        "sections": sections,
        "shapes": [
            {"name": name, "description": schema.get("description", ""), "rows": rows(schema, decoded=name in MEANING)}
            for name, schema in components["schemas"].items()
            if name in mentioned
        ],
    }


def shown_call(same: list[tuple[str, str, dict]], components: dict[str, Any], url: str) -> dict[str, Any]:
    """A call, which may have several methods."""
    _, path, one = same[0]
    status, answer = next(iter(one["responses"].items()))
    shown = answer.get("content", {}).get("application/json")
    fields = {
        place: rows(
            {
                "properties": {
                    each["name"]: {**each["schema"], **each} for each in one["parameters"] if each["in"] == place
                },
                "required": [each["name"] for each in one["parameters"] if each["required"]],
            }
        )
        for place in ("path", "query", "header")
    }
    body = one.get("requestBody", {}).get("content", {}).get("application/json")
    return {
        "anchor": one["operationId"],
        "methods": [method.upper() for method, _, _ in same],
        "path": path,
        "summary": one["summary"],
        "description": one["description"].split("\n\n") if one["description"] else [],
        "caller": one["x-caller"],
        "fields": {**fields, "body": rows(inlined(body["schema"], components)) if body else []},
        "status": status,
        "answer": rows(answer_fields(shown["schema"], components), decoded=False) if shown else [],
        "answer_headers": [(name, header["description"]) for name, header in answer.get("headers", {}).items()],
        "answer_example": pretty(shown["example"]) if shown else "",
        "errors": [
            (status, phrase(status), resolved(response, components)["description"])
            for status, response in one["responses"].items()
            if "400" <= status < "500"
        ],
        "examples": [curl(method, path, one, url) for method, path, one in same],
    }


def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def phrase(status: str) -> str:
    return HTTPStatus(int(status)).phrase


def resolved(value: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    if "$ref" not in value:
        return value
    _, _, kind, name = value["$ref"].split("/")
    return components[kind][name]


def inlined(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """An object's schema with its fields; of alternatives, those of all of them, none of them required."""
    objects = [resolved(one, components) for one in schema.get("anyOf", [schema])]
    objects = [one for one in objects if one["type"] == "object"]
    if len(objects) == 1:
        return objects[0]
    return {"properties": {name: field for one in objects for name, field in one["properties"].items()}, "required": []}


def answer_fields(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """The fields of an answer, those of `content` by their names in there."""
    fields = dict(schema["properties"])
    if content := fields.pop("content", None):
        content = inlined(content, components)
        fields |= {f"content.{name}": field for name, field in content["properties"].items()}
    return {"properties": fields}


def rows(schema: dict[str, Any], decoded: bool = True) -> list[dict[str, Any]]:
    """The lines of a table of fields, of what the tracker decodes or of what it answers."""
    return [
        {
            "name": name,
            "type": type_of(field),
            "shape": shape_of(field),
            "limits": limits(field),
            "required": decoded and name in schema["required"],
            "default": default_of(field),
            "meaning": field.get("description", ""),
        }
        for name, field in schema["properties"].items()
        if "const" not in field  # it says nothing
    ]


def shape_of(schema: dict[str, Any]) -> str | None:
    """The name of the component that the field holds, or holds a list of."""
    for one in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
        if "$ref" in one:
            return one["$ref"].rpartition("/")[2]
    return None


def type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"])
    if schema.get("items"):
        return f"list of {type_of(schema['items'])}"
    return schema.get("type", "any JSON").replace("array", "list")


def limits(schema: dict[str, Any]) -> str:
    """The limits of a value, in words."""
    one = next((one for one in schema.get("anyOf", ()) if one != {"type": "null"}), schema)
    for kind, unit in (("imum", ""), ("Length", " characters"), ("Items", " of them")):
        low, high = one.get(f"min{kind}"), one.get(f"max{kind}")
        if "exclusiveMaximum" in one:
            high = one["exclusiveMaximum"] - 1
        if high in (2**63 - 1, 2**64 - 1) and low != 0:
            return "64 bits"
        if high is not None and high != 2**63 - 1:
            beginning = "at most" if low is None else f"{in_words(low)} to"
            return f"{beginning} {in_words(high)}{unit}"
        if low is not None:
            return f"at least {in_words(low)}{unit}"
    return ""


def default_of(schema: dict[str, Any]) -> str:
    """What an absent field counts as, as JSON; nothing when there is no such value."""
    default = schema.get("default")
    return "" if default is None else f"{default:g}" if isinstance(default, float) else json.dumps(default)


def shapes_of(schemas: dict[str, Any], sections: list[dict[str, Any]]) -> set[str]:
    """The components that the tables mention, and those that these mention."""
    tables = [
        table
        for section in sections
        for call in section["calls"]
        for table in (*call["fields"].values(), call["answer"])
    ]
    found = {row["shape"] for table in tables for row in table if row["shape"]}
    while more := {row["shape"] for name in found for row in rows(schemas[name])} - found - {None}:
        found |= more
    return found
