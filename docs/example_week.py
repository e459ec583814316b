"""A believable week of several crawls, in a database of its own: for screenshots, and for tests that want full pages.

Everything in it was done by the tracker's own functions, with a clock that is moved from minute to minute: the queues
fill and drain, machines come and go with the day, fail, fall silent; managers answer, pause and reset.

    week = fill(Path("week.db"))
    with tracker.serving(week.settings, week.clock()) as url: ...
"""

from __future__ import annotations

import inspect
import io
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import shapes
import tracker
from database import connect, load_uptime, prepare_file
from dialects import theeye
from dialects.testflinger import api as testflinger_api
from dialects.testflinger import clients as testflinger_clients
from dialects.testflinger import domain as testflinger_domain
from dialects.testflinger import queues as testflinger_queues
from lines import Upload
from shapes import ProjectBody, ReleaseBody
from tracker import FAIL, OK, SKIP, TaskAction, TaskFilter, WorkerCredentials

BEGAN = 1_780_299_000  # Monday, 1 June 2026, 07:30 UTC
DAYS = 8.3
PASSWORD = "correct horse"
JOB_MINUTES = 19  # how long the jobs take, about
LONG_NAME = (
    "Everything that the parliaments of the regions have published since 1949, in all languages, with attachments"
)


class StoryClock(tracker.Clock):
    """Stands where the story has got to: `now` is in seconds since it began."""

    now = 0.0

    def uptime(self) -> float:
        return self.now

    def time(self) -> float:
        return BEGAN + self.now


class LaterClock(tracker.Clock):
    """Goes on from where the story ended, at the speed of the real one."""

    def time(self) -> float:
        return BEGAN + self.uptime()


@dataclass
class Week:
    """What is in the database: the ids of what is worth looking at. Every manager's password is PASSWORD."""

    settings: tracker.Settings
    projects: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)
    templates: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)
    workflow: int = 0
    queues: dict[str, int] = field(default_factory=dict)  # of Testflinger: projects, too
    agents: dict[str, int] = field(default_factory=dict)
    lab_jobs: dict[str, str] = field(default_factory=dict)

    def clock(self) -> tracker.Clock:
        """The clock with which to serve the database."""
        return LaterClock()


@dataclass
class Machine:
    """A worker and its habits: which hours it works (UTC), how many tasks a minute, how many it holds, how it fails."""

    alias: str
    speed: float
    projects: tuple[str, ...]
    hours: range = range(24)
    holds: int = 6
    failing: float = 0.01
    gone: float = 1.0  # the part of the story after which it is not heard of any more
    caller: WorkerCredentials | None = None
    held: list[int] = field(default_factory=list)
    credit: float = 0.0


MACHINES = (
    Machine("rack-1", 0.8, ("wiki", "tiles", "parliaments"), holds=20),
    Machine("rack-2", 0.7, ("wiki", "news", "tiles"), holds=20),
    Machine("rack-3", 0.6, ("wiki", "thumbnails", "news"), holds=12, failing=0.03),
    Machine("büro-süd/fetch-01", 0.5, ("wiki", "forum"), range(6, 19), failing=0.02),
    Machine("büro-süd/fetch-02", 0.4, ("wiki", "forum"), range(6, 19)),
    Machine("Αθήνα/1", 0.5, ("tiles", "thumbnails"), holds=10),
    Machine("old laptop ☕", 0.15, ("news", "press"), range(16, 23), holds=2, failing=0.08),
    Machine("seedbox", 0.4, ("news", "catalogue", "forum"), failing=0.02),
    Machine("attic-nas", 0.3, ("wiki", "news"), holds=9, gone=0.86, failing=0.04),
    Machine(
        "reading-room terminal no. 4 (please leave it switched on overnight)", 0.2, ("catalogue", "press"), holds=3
    ),
    Machine("pi-cluster-a", 0.3, ("news", "thumbnails", "parliaments"), failing=0.02),
    Machine("pi-cluster-b", 0.3, ("news", "thumbnails", "parliaments"), failing=0.02),
)

PROJECTS = {
    "wiki": {
        "name": "wiki-2026",
        "priority": 5,
        "public": True,
        "keep_hashes": True,
        "motd": "One request a second per host, please. The mirror in the reading room is back.",
        "git_repo": "crawls/wiki-fetch",
        "clone_url": "https://git.example.org/crawls/wiki-fetch.git",
        "version": "4f1c2e9b7a",
    },
    "news": {"name": "news archive 1998–2006", "priority": 3, "motd": "Each page is fetched by two machines."},
    "tiles": {"name": "map tiles: Zürich, São Paulo, Αθήνα", "priority": 2, "assign_rate": 5.0},
    "thumbnails": {"name": "tile thumbnails", "priority": 2},
    "forum": {"name": "forum-images", "priority": 4, "motd": "Paused: the host has asked us to wait until Thursday."},
    "catalogue": {"name": "museum catalogue", "priority": 1},
    "press": {"name": "press releases", "priority": 1, "hidden": True},
    "parliaments": {"name": LONG_NAME, "priority": -1, "submit_rate": 50.0},
    "empty": {"name": "summer 2027", "public": True},
    "website": {"name": "reading-room website"},
}

CHECK_SCRIPT = """#!/usr/bin/env python3
import os
import sys

import check_links

depth = int(os.environ["TRACKER_VAR_DEPTH"])
found = check_links.run(os.environ["TRACKER_VAR_SITE"], depth, agent=sys.argv[1])
for page, link, status in found.broken:
    print(f"{page}: {link} answers {status}", flush=True)
sys.exit(bool(found.broken) and "--strict" in sys.argv)
"""
DEPLOY_SCRIPT = "set -e\ngit -C site pull\nmake -C site html\nrsync --archive site/html/ web.example.org:/srv/www/\n"
TEMPLATES = {
    "deploy": {
        "name": "deploy the website",
        "description": "Builds the pages and puts them onto the web server. Stops before that if the build warns.",
        "script": DEPLOY_SCRIPT,
        "runas": "bash %script%",
        "variables": [
            shapes.Variable("branch", "main", True, ["main", "preview"], "What is built."),
            shapes.Variable("note", "", description="For the log of changes."),
        ],
        "undeclared": False,
        "env": {"GIT_SSH_COMMAND": "ssh -i /etc/deploy/key"},
        "timeout": 900.0,
        "max_retries": 2,
        "api": True,
        "key": "secure123",
        "keep_count": 200,
    },
    "check": {
        "name": "check all links",
        "description": "Finds links that lead nowhere.",
        "script": CHECK_SCRIPT,
        "variables": [
            shapes.Variable("SITE", "https://www.example.org/", True),
            shapes.Variable("DEPTH", "3", False, ["1", "3", "10"]),
        ],
        "arguments": [
            shapes.Argument(0, "input", "User agent", "reading-room"),
            shapes.Argument(1, "select", "Mode", "--lenient", ["--lenient", "--strict"]),
            shapes.Argument(2, "fixed", "Format", "--plain"),
        ],
    },
    "report": {
        "name": "write the weekly report for the trustees, with all figures and a letter",
        "recipe": "report {week}",
        "variables": [shapes.Variable("week", None, True, description="Its number, 1 to 53.")],
        "api": True,
    },
}

LAB_QUEUES = {
    "rpi4": "Raspberry Pi 4 with 8 GB, on the shelf at the window",
    "x13s": "Laptops with an ARM processor: ask before you reserve one",
    "amd64-rack-b": "",
}
LAB_AGENTS: dict[str, dict[str, Any]] = {
    "rpi4-001": {"queues": ["x13s", "rpi4"], "location": "shelf 1", "provision_type": "muxpi", "state": "waiting"},
    "rpi4-002": {"queues": ["rpi4"], "location": "shelf 1", "provision_type": "muxpi", "state": "waiting"},
    "rpi4-003": {
        **{"queues": ["rpi4", "arm64"], "location": "shelf 2", "provision_type": "muxpi", "state": "offline"},
        "comment": "Its power switch is being replaced.",
    },
    "x13s-001": {"queues": ["x13s"], "location": "cupboard", "provision_type": "zapper_iot", "state": "maintenance"},
    "lab-rack-b-bmc-with-a-long-name.lab.example.org": {
        **{"queues": ["amd64-rack-b", "amd64", "servers", "secure-boot", "tpm2"], "location": "rack B, row 14"},
        **{"provision_type": "maas2", "state": "waiting"},
    },
}
LAB_CLIENTS: dict[str, dict[str, Any]] = {
    "nightly": {"max_priority": {"*": 10, "rpi4": 50}, "allowed_queues": ["x13s"]},
    "lab-agents": {"role": "agent"},
    "kernel-team@example.org": {"max_reservation_time": {"*": 86_400, "x13s": 172_800}},
    "operations": {"role": "admin"},
}

WORDS = (
    *("harbour", "Brücke", "łódź", "windmill", "orchard", "tramway", "quarry", "lighthouse", "viaduct", "granary"),
    *("observatory", "canal", "weir", "Πύργος", "ferry", "mill pond", "glasshouse", "signal box", "pump house", "pier"),
)
LINES = (
    ("info", "fetch", "{count} pages, {size} MB, {count} links found"),
    ("info", "fetch", "robots.txt read: 3 rules, crawl delay 1 s"),
    ("info", "main", "version 4f1c2e9b7a, up for {count} min"),
    ("debug", "http", "connection to {word}.example.org reused ({count} requests)"),
    ("debug", "queue", "holding {count} tasks, asking for more"),
    ("warn", "http", "429 Too Many Requests from {word}.example.org: waiting {count} s"),
    ("warn", "parse", "charset of the page is not what its header says (windows-1252, utf-8)"),
    ("error", "http", "certificate of {word}.example.org has expired"),
    (
        "error",
        "parse",
        "Traceback (most recent call last):\n"
        '  File "fetch.py", line 212, in parse\n'
        "    tree = lxml.html.fromstring(body)\n"
        "lxml.etree.ParserError: Document is empty",
    ),
)


class Story:
    """Tells the week, minute by minute. The same seed makes the same week."""

    def __init__(self, database: Path, days: float) -> None:
        settings = tracker.Settings(
            database=str(database),
            log_file=f"{database.stem}.log",
            log_level="debug",
            session_lifetime=1e7,
            refresh_interval=3600,  # a picture holds still
        )
        self.week = Week(settings)
        self.days = days
        self.random = random.Random(7)
        self.clock = StoryClock()
        self.sessions: dict[str, bytes] = {}
        self.machines = [replace(one, held=[]) for one in MACHINES]
        self.feeds: dict[str, float] = {}  # tasks a minute that a project's workers find
        prepare_file(database, settings)
        self.connection = connect(database, settings)
        self.connection.execute("PRAGMA synchronous = OFF")  # nothing of it has to outlast a power cut
        self.connection.execute("BEGIN")

    def do(self, function: Callable, *args: Any) -> Any:
        tx = tracker.Tx(self.connection, self.clock, self.week.settings)
        second = list(inspect.signature(function).parameters.values())[1:2]
        takes_caller = [one.annotation.rpartition(".")[2] for one in second] == ["Caller"]
        result = tracker.as_caller(tx, function, *args) if takes_caller else function(tx, *args)
        tx.counts.write(tx)
        if tx.seen:
            tx.executemany("UPDATE worker SET last_seen = ? WHERE id = ?", [(tx.time, worker) for worker in tx.seen])
        return result

    def as_manager(self, username: str, function: Callable, project: str, *args: Any) -> Any:
        return self.do(function, self.sessions[username], self.week.projects[project], *args)

    # People, projects, machines

    def begin(self) -> None:
        self.do(load_uptime)
        password = tracker.hash_password(PASSWORD)
        for username in ("alice", "bob", "carol", "maximiliane.long"):
            self.sessions[username] = self.do(tracker.register_manager, username, password)[1]
        for short, fields in PROJECTS.items():
            owner = "bob" if short in ("news", "forum") else "alice"
            body = ProjectBody(**fields)
            self.week.projects[short] = self.do(tracker.create_project, self.sessions[owner], body)
        self.as_manager("alice", tracker.update_project, "tiles", ProjectBody(chain=self.week.projects["thumbnails"]))
        self.as_manager("alice", tracker.set_secret, "wiki", shapes.SecretBody('{"proxy": "http://10.0.0.7:3128"}'))
        for project, username, roles in (
            ("wiki", "bob", {"read": True, "edit": True, "maintenance": True}),
            ("wiki", "maximiliane.long", {"read": True}),
            ("news", "carol", {"read": True, "manage_access": True}),
        ):
            self.as_manager("alice", tracker.set_named_role, project, shapes.RoleForm(username, **roles))
        for machine in self.machines:
            machine.caller = self.create_worker(machine.alias)
            for project in machine.projects:
                body = shapes.WorkerRolesBody(machine.caller.id, assign=True, submit="pi" not in machine.alias)
                self.as_manager("alice", tracker.set_worker_access, project, body)
        self.upload("wiki", 900, max_retries=3)
        self.upload("news", 6500, max_retries=2, verification_count=2)
        self.upload("tiles", 16_000, max_retries=5, format="text")
        self.upload("forum", 5200, max_retries=3)
        self.upload("catalogue", 1100, max_retries=2)
        self.upload("press", 700, max_retries=1)
        self.feeds = {"wiki": 2.6, "news": 0.15, "press": 0.03}

    def create_worker(self, alias: str) -> WorkerCredentials:
        worker = self.do(tracker.create_worker, None, shapes.AliasBody(alias))
        self.week.workers[alias] = worker.id
        return WorkerCredentials(worker.id, worker.secret.encode())

    def recipes(self, project: str, count: int) -> list[str]:
        numbers = [self.random.randrange(10**6) for _ in range(count)]
        if project in ("tiles", "thumbnails"):
            return [f'{{"z": 14, "x": {number // 1000}, "y": {number % 1000}, "style": "plain"}}' for number in numbers]
        return [f"https://{project}.example.org/{self.random.choice(WORDS)}/{number:06d}" for number in numbers]

    def upload(self, project: str, count: int, more: Iterable[str] = (), finish: bool = True, **defaults: Any) -> int:
        """A manager's upload of many lines; `more` are some with mistakes. The operation's id."""
        session, id = self.sessions["alice"], self.week.projects[project]
        operation = self.do(tracker.begin_lines_submit, session, id)
        report = shapes.LinesReport()
        count = math.ceil(count * min(1, self.days / 4))  # a shorter story has shorter queues
        text = "\n".join([*self.recipes(project, count), *more]).encode()
        given = Upload(io.BytesIO(text), id, shapes.LineDefaults(once=True, **defaults), "file")
        pieces = tracker.line_pieces(given, len(text), report)
        for number, piece in enumerate(filter(None, pieces), 1):
            self.do(tracker.add_bulk_piece, operation, number, piece)
        self.do(tracker.accept_lines_submit, session, operation, report)
        if finish:
            self.finish(operation)
        return operation

    def finish(self, operation: int) -> int:
        while self.do(tracker.step_operation, operation) is None:
            pass
        return operation

    def act(self, username: str, project: str, action: str, priority: int | None = None, **wanted: Any) -> int:
        """A manager's action on all tasks that match. The operation's id."""
        body, filter = TaskAction(action, priority), TaskFilter(**wanted)
        return self.finish(self.as_manager(username, tracker.begin_action, project, body, filter))

    # A minute

    def live(self) -> None:
        minutes = int(self.days * 1440)
        events = {0.2: self.settle, 0.37: self.recover, 0.7: self.pause_forum, 0.85: self.open_parliaments}
        due = {int(part * minutes): event for part, event in events.items()}
        due[minutes - JOB_MINUTES] = self.last_minutes  # which end as the story does
        for minute in range(1, minutes + 1):
            self.clock.now = 60.0 * minute
            if event := due.get(minute):
                event()
            self.minute(minute, minute / minutes)
            if int(self.clock.time()) % 3600 < 60:
                self.do(tracker.roll_tallies, (0, 0), int(self.clock.time()) // 3600 - 1)

    def minute(self, minute: int, part: float) -> None:
        """What happens in a minute, when this part of the story has passed."""
        hour = (BEGAN // 60 + minute) / 60 % 24
        day = 0.75 + 0.25 * math.sin((hour - 9) / 24 * 2 * math.pi)
        storm = 0.33 < part < 0.345  # hosts in trouble
        for project, rate in self.feeds.items():
            self.find(project, rate * day)
        for number, machine in enumerate(self.machines):
            self.clock.now = 60.0 * minute + 4 * number + self.random.random()
            if part < machine.gone and int(hour) in machine.hours:
                self.work(machine, day * (0.5 if storm else 1), 0.6 if storm else machine.failing)
        self.do(tracker.expire_tasks)
        self.do(tracker.take_snapshots, 0, int(self.clock.time()))

    def find(self, project: str, rate: float) -> None:
        """The workers of a project find new tasks while they work."""
        finder = next(machine for machine in self.machines if project in machine.projects)
        for recipe in self.recipes(project, int(rate + self.random.random())):
            body = shapes.SubmitBody(self.week.projects[project], recipe, self.random.choice((0, 0, 0, 1)), 3)
            self.do(tracker.submit_task, finder.caller, tracker.new_task(body))

    def work(self, machine: Machine, pace: float, failing: float) -> None:
        """Releases what a machine has finished, and takes as much again."""
        machine.credit += machine.speed * pace * self.random.uniform(0.4, 1.6)
        while machine.credit >= 1 and machine.held:
            machine.credit -= 1
            task = machine.held.pop(0)
            chance = self.random.random()
            bad = chance < failing or task % 83 == 0  # some tasks nobody can do
            result = FAIL if bad else SKIP if chance > 0.999 else OK
            said = ""
            if self.random.random() < 0.02 or result == FAIL:
                said = self.say(machine, task, grave=result == FAIL)
            right = self.random.random() > 0.02
            error = said if result == FAIL else ""
            body = ReleaseBody(task, result, task * 7919 if right else 1, error=error)
            self.do(tracker.release_task, machine.caller, body)
        if (free := machine.holds - len(machine.held)) > machine.holds // 3:
            project = self.week.projects[self.random.choice(machine.projects)]
            tasks = self.do(tracker.assign_tasks, machine.caller, [project], free).tasks
            machine.held += [task.id for task in tasks]
        machine.credit = min(machine.credit, 3)

    def say(self, machine: Machine, task: int, grave: bool) -> str:
        """What the machine logs, which is why a task fails if it is grave."""
        lines = [line for line in LINES if (line[0] == "error") == grave]
        level, scope, text = self.random.choice(lines)
        count, size = self.random.randrange(2, 400), round(self.random.uniform(0.2, 90), 1)
        message = text.format(count=count, size=size, word=self.random.choice(("forum", "wiki", "news", "static")))
        body = shapes.LogBody(
            scope, int(self.clock.time()), message, task_id=task if self.random.random() < 0.8 else None
        )
        self.do(tracker.add_log_entry, machine.caller, level, body)
        return message

    # What happens once

    def settle(self) -> None:
        self.act("bob", "wiki", "set_priority", 3, text="viaduct")

    def recover(self) -> None:
        self.week.operations["retry"] = self.act("bob", "wiki", "retry", state="failed")

    def pause_forum(self) -> None:
        self.as_manager("bob", tracker.update_project, "forum", ProjectBody(paused=True))

    def open_parliaments(self) -> None:
        self.upload("parliaments", 30_000, max_retries=4)

    def verify_alone(self, machine: Machine) -> None:
        """One machine does tasks that need another one as well."""
        for task in self.do(tracker.assign_tasks, machine.caller, [self.week.projects["news"]], 40).tasks:
            self.do(tracker.release_task, machine.caller, ReleaseBody(task.id, OK, task.id * 7919))

    def end(self) -> None:
        """The last minutes: what the pages show besides the numbers."""
        script = "set -e\ncurl --fail --location --output page.warc https://wiki.example.org/harbour\n./check page.warc"
        url = (
            f"https://wiki.example.org/search?{'&'.join(f'{word}={word}' for word in 'abcdefghijklmnopqrstuvwxyz')}&"
            + 40 * "x9"
        )
        for recipe in (script, url, '<script>alert("shown as text")</script> & "quoted"'):
            body = shapes.SubmitBody(self.week.projects["wiki"], recipe, 9, 3)
            self.do(tracker.submit_task, self.machines[0].caller, tracker.new_task(body))
        mistakes = ('{"recipe": "https://wiki.example.org/pier", "priority": "high"}', '{"recipe": ""}', '{"url": 7}')
        twice = ("https://wiki.example.org/pier/1", "https://wiki.example.org/pier/1")
        self.week.operations["upload"] = self.upload("wiki", 4000, (*mistakes, *twice))
        self.week.operations["upload-going-on"] = self.upload("wiki", 24_000, finish=False)
        self.do(tracker.set_worker_paused, self.sessions["alice"], shapes.PauseBody(self.week.workers["seedbox"], True))
        for alias, project, assign in (
            ("attic-nas 2", "parliaments", True),
            ("Rechenzentrum Halle, Schrank 12", "parliaments", True),
            ("my laptop", "parliaments", True),
            ("link-finder", "wiki", False),
        ):
            body = shapes.AccessBody(self.week.projects[project], assign=assign, submit=not assign)
            self.do(tracker.request_access, self.create_worker(alias), body)
        wiki = self.week.projects["wiki"]
        for state, condition in (
            ("failed", "status = 2 AND id IN (SELECT task FROM log_entry)"),
            ("assigned", f"assignee IS NOT NULL AND project = {wiki}"),
            ("awaiting", "status = 1 AND verifiers IS NOT NULL AND assignee IS NULL"),
            ("waiting", f"recipe LIKE 'set -e%' AND project = {wiki}"),
        ):
            self.week.tasks[state] = self.connection.execute(f"SELECT max(id) FROM task WHERE {condition}").fetchone()[
                0
            ]
        past = "SELECT max(task) FROM assignment WHERE outcome = 'closed' AND task NOT IN (SELECT id FROM task)"
        self.week.tasks["closed"] = self.connection.execute(past).fetchone()[0]
        self.let_others_in()
        self.do(tracker.save_uptime)
        self.connection.execute("COMMIT")
        self.connection.close()

    # Jobs

    def last_minutes(self) -> None:
        began = self.clock.now
        self.run_lab()
        self.clock.now = began
        self.run_jobs()

    def run_jobs(self) -> None:
        """The last half hour of the website: templates, and jobs in every state."""
        session, website = self.sessions["alice"], self.week.projects["website"]
        for short, fields in TEMPLATES.items():
            body = shapes.TemplateBody(project=website, **fields)
            self.week.templates[short] = self.do(tracker.create_template, session, body).id
        runner = self.create_worker("web-builder")
        body = shapes.WorkerRolesBody(runner.id, assign=True)
        self.as_manager("alice", tracker.set_worker_access, "website", body)
        check = {"arguments": ["reading-room", "--strict"]}
        for _ in range(3):
            self.clock.now += 120
            self.trigger("check", **check, variables={"DEPTH": "1"})
            self.run_job(runner, ["https://www.example.org/opening-hours: 12 links, all of them well"])
        self.trigger("deploy", variables={"note": "new opening hours"})
        lines = [f"site/pages/{word.replace(' ', '-')}.html: written" for word in WORDS for _ in range(8)]
        self.week.jobs["succeeded"] = self.run_job(runner, [*lines, "sent 41.2 MB in 160 files"], output=["main", 160])
        self.trigger("check", **check)
        broken = "https://www.example.org/harbour: http://old.example.org/pier.html answers 404"
        self.week.jobs["failed"] = self.run_job(runner, [broken], FAIL, level="error")
        self.trigger("check", arguments=["reading-room", "--lenient"])
        self.week.jobs["warned"] = self.run_job(runner, [broken], level="warn")
        self.week.jobs["cancelled"] = self.trigger("deploy", variables={"branch": "preview"})
        self.do(tracker.cancel_job, session, self.week.jobs["cancelled"])
        self.run_workflow(runner)
        self.week.jobs["assigned"] = self.trigger("deploy", variables={"branch": "preview", "note": "trial"})
        self.clock.now += 60
        [task] = self.do(tracker.assign_tasks, runner, [website]).tasks
        self.log_to(runner, task.id, ["Already up to date.", *lines[:12]])
        self.clock.now += 60
        self.week.jobs["waiting"] = self.trigger("report", variables={"week": 24})

    def trigger(self, template: str, **given: Any) -> str:
        """The token of a new job."""
        body = shapes.TriggerBody(**given)
        session = self.sessions["alice"]
        return self.do(tracker.trigger_template, session, self.week.templates[template], body).id

    def run_job(
        self, runner: WorkerCredentials, lines: list[str], result: int = OK, output: Any = None, level: str = "info"
    ) -> str:
        """A worker takes the next job of the website, and does it."""
        self.clock.now += 20
        [task] = self.do(tracker.assign_tasks, runner, [self.week.projects["website"]]).tasks
        self.clock.now += self.random.uniform(20, 90)
        self.log_to(runner, task.id, lines, level)
        said = {"code": int(result == FAIL), "log": "\n".join(lines[-3:]), "lastline": lines[-1], "signal": None}
        said |= {"killed": False, "output": output}
        body = ReleaseBody(task.id, result, output=tracker.Raw(tracker.encode(said)))
        self.do(tracker.release_task, runner, body)
        return task.job.id

    def log_to(self, runner: WorkerCredentials, task: int, lines: list[str], level: str = "info") -> None:
        entries = [shapes.TaskEntry(line, int(self.clock.time()), level, "out") for line in lines]
        self.do(tracker.log_to_task, runner, shapes.TaskLogBody(task, entries))

    def run_workflow(self, runner: WorkerCredentials) -> None:
        """All links are checked after the deployment."""
        ids, session = self.week.templates, self.sessions["alice"]
        edges = [shapes.Edge(ids["deploy"], "success", ids["check"])]
        body = shapes.WorkflowBody(self.week.projects["website"], "deploy and check", ids["deploy"], edges)
        workflow = self.week.workflow = self.do(tracker.create_workflow, session, body).id
        given = shapes.TriggerBody({"branch": "main", "note": ""})
        self.week.jobs["run"] = self.do(tracker.trigger_workflow, session, workflow, given).id
        self.run_job(runner, ["built and sent"], output=["reading-room", "--lenient"])
        self.week.jobs["step"] = self.run_job(runner, ["no broken links"])

    # A lab of devices, whose agents speak Testflinger's language

    def run_lab(self) -> None:
        session = self.sessions["alice"]
        for client, fields in LAB_CLIENTS.items():
            body = testflinger_clients.ClientBody(client_id=client, **fields)
            self.do(testflinger_clients.create_client, session, body)
        self.do(testflinger_queues.advertise_queues, LAB_QUEUES)
        self.do(testflinger_queues.set_images, {"rpi4": {"noble": {"url": "https://images.example.org/noble.img.xz"}}})
        rows = self.do(testflinger_queues.all_queues)
        self.week.queues = {row["name"]: row["project"] for row in rows}
        self.do(testflinger_clients.set_restricted, session, self.week.queues["x13s"], True)
        for number, (agent, fields) in enumerate(LAB_AGENTS.items(), 1):
            self.do(testflinger_domain.update_agent, agent, dict(fields))
            self.week.agents[agent] = number
        for number in range(14):
            job = self.submit_to_lab("rpi4", f"smoke test of kernel 6.8.0-{40 + number}", tags=["kernel", "nightly"])
            self.clock.now += self.random.expovariate(1 / 20)
            self.do_in_lab("rpi4-002", job, bool(number % 5 == 3))
            if number > 10:
                self.do(
                    testflinger_domain.add_provision_log, None, "rpi4-003", job, 1, "no answer from the power switch"
                )
        self.week.lab_jobs["ended"] = job
        self.do(testflinger_domain.store_file, job, "artifact", 32 * "a", 48_318_382)
        for number in range(7):
            name = f"boot loop {number + 1} of 7"
            self.week.lab_jobs["waiting"] = self.submit_to_lab("rpi4", name, job_priority=10 * (number == 5))
        self.submit_to_lab("rpi4", "not before the disk is changed", exclude_agents=["rpi4-001", "rpi4-003"])
        self.week.lab_jobs["running"] = self.submit_to_lab("x13s", "suspend and resume, 30 times", tags=["power"])
        self.begin_in_lab("rpi4-001", "x13s", self.week.lab_jobs["running"])

    def submit_to_lab(self, queue: str, name: str, **fields: Any) -> str:
        """The id of a new job of the client `nightly`."""
        row = self.do(testflinger_clients.find_row, "nightly")
        commands = "set -e\nuname --all\ncheckbox-cli run --test-plan smoke\n"
        data = {"provision_data": {"distro": "noble"}, "test_data": {"test_cmds": commands}, "global_timeout": 7200}
        webhook = "https://ci.example.org/hooks/lab"
        job = testflinger_api.submission(
            {"job_queue": queue, "name": name, "job_status_webhook": webhook, **data, **fields}
        )
        return self.do(testflinger_domain.submit_job, self.do(testflinger_clients.client_of, row), job)

    def begin_in_lab(self, agent: str, queue: str, job: str) -> None:
        """An agent gets this job, and comes as far as its test."""
        assert self.do(testflinger_domain.pick_job, None, [queue], agent).shown["job_id"] == job
        self.say_in_lab(agent, job, "setup", "Cleaning the work folder\n")
        self.report_in_lab(agent, job, "provision", setup_status=0)
        for percent in range(0, 101, 10):
            self.say_in_lab(agent, job, "provision", f"\x1b[33mflashing\x1b[0m: {percent} %\n")
        self.say_in_lab(agent, job, "provision", "[    0.000000] Booting Linux on physical CPU 0x0\n", "serial")
        self.say_in_lab(agent, job, "provision", "Ubuntu 24.04 LTS lab ttyS0\n\nlab login: ", "serial")
        self.do(testflinger_domain.add_provision_log, None, agent, job, 0, "")
        self.report_in_lab(agent, job, "test", provision_status=0)
        lines = [f"{word}: {self.random.choice(('passed', 'passed', 'skipped'))}\n" for word in WORDS]
        self.say_in_lab(agent, job, "test", "".join(lines))

    def do_in_lab(self, agent: str, job: str, fails: bool) -> None:
        self.begin_in_lab(agent, "rpi4", job)
        self.clock.now += self.random.uniform(10, 40)
        self.report_in_lab(agent, job, "cleanup", test_status=3 if fails else 0)
        device = {"agent_name": agent, "device_ip": "192.0.2.17"}
        self.report_in_lab(agent, job, "complete", cleanup_status=0, device_info=device)

    def report_in_lab(self, agent: str, job: str, state: str, **fields: Any) -> None:
        values = {name: tracker.Raw(tracker.encode(value)) for name, value in fields.items()}
        self.do(testflinger_domain.add_result, None, job, agent, values, state)
        present = {"state": state, "job_id": job} if state != "complete" else {"state": "waiting", "job_id": ""}
        lines = [f"{job}: {state}"]
        self.do(testflinger_domain.update_agent, agent, {**present, "log": lines})

    def say_in_lab(self, agent: str, job: str, phase: str, text: str, kind: str = "output") -> None:
        self.do(testflinger_domain.add_fragment, None, job, kind, agent, text, phase)

    def let_others_in(self) -> None:
        """A program and two machines that speak theeye.io's language."""
        session, project = self.sessions["alice"], self.week.projects["website"]
        for name, admin in ("intranet buttons", False), ("nightly import", True), ("old intranet", False):
            self.do(theeye.create_token, session, theeye.TokenForm(name, admin))
        self.do(theeye.revoke_token, session, 3)
        for alias in "web-1", "web-2":
            self.do(theeye.create_agent, session, theeye.AgentForm(project, alias))
        self.do(theeye.note_host, project, "www.example.org", "v1.2.0", {"os_name": "Linux"})


def fill(database: Path, days: float = DAYS) -> Week:
    """Makes the database and says what is in it. Fewer days: the same story with less in it, and sooner told."""
    story = Story(database, days)
    story.begin()
    story.live()
    story.end()
    return story.week
