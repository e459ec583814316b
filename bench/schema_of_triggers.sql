-- The baseline of the benchmark `bulk`: the task table of schema version 6 with its indexes and the trigger that counted
-- each new task, as they were. The tracker's own schema has gone on; the baseline stays, so that figures of different
-- versions can be compared.

CREATE TABLE project (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    name                        TEXT NOT NULL UNIQUE,
    priority                    INTEGER NOT NULL,
    clone_url                   TEXT NOT NULL,
    git_repo                    TEXT NOT NULL COLLATE NOCASE,
    version                     TEXT NOT NULL,
    motd                        TEXT NOT NULL,
    public                      INTEGER NOT NULL,
    hidden                      INTEGER NOT NULL,
    paused                      INTEGER NOT NULL,
    chain                       INTEGER,
    keep_hashes                 INTEGER NOT NULL,            -- closed tasks' hashes stay taken (kept_hash)
    assign_rate                 REAL NOT NULL,               -- tasks per second, 0 = unlimited
    submit_rate                 REAL NOT NULL,
    assign_free_uptime          REAL NOT NULL DEFAULT 0,     -- the rate limiters: nothing passes before
    submit_free_uptime          REAL NOT NULL DEFAULT 0,
    secret                      TEXT NOT NULL DEFAULT '{}',
    webhook_secret              TEXT NOT NULL,
    waiting_task_count          INTEGER NOT NULL DEFAULT 0,  -- ready, verified by nobody yet
    awaiting_verification_count INTEGER NOT NULL DEFAULT 0,  -- ready, verified by somebody but not by enough
    assigned_task_count         INTEGER NOT NULL DEFAULT 0,
    failed_task_count           INTEGER NOT NULL DEFAULT 0,
    closed_task_count           INTEGER NOT NULL DEFAULT 0,
    CHECK (NOT (public AND hidden))
) STRICT;

CREATE TABLE task (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    project                     INTEGER NOT NULL,
    priority                    INTEGER NOT NULL,
    status                      INTEGER NOT NULL DEFAULT 1,
    retries                     INTEGER NOT NULL DEFAULT 0,
    max_retries                 INTEGER NOT NULL,
    max_assign_time             INTEGER NOT NULL,            -- seconds, 0 = the tracker's default
    verification_count          INTEGER NOT NULL,
    hash64                      INTEGER,
    assignee                    INTEGER,
    assign_time                 INTEGER,
    assigned_uptime             REAL,
    deadline_uptime             REAL,
    verifiers                   INTEGER,                     -- verifier_set: who has verified it so far
    job                         INTEGER,                     -- NULL: a plain task
    recipe                      TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX task_hash ON task (project, hash64) WHERE hash64 IS NOT NULL;
CREATE INDEX task_waiting ON task (project, priority DESC, id)
    WHERE status = 1 AND assignee IS NULL AND verifiers IS NULL;
CREATE INDEX task_awaiting ON task (verifiers, priority DESC, id)
    WHERE status = 1 AND assignee IS NULL AND verifiers IS NOT NULL;
CREATE INDEX task_verifiers ON task (verifiers) WHERE verifiers IS NOT NULL;
CREATE INDEX task_awaiting_project ON task (project, id)
    WHERE status = 1 AND assignee IS NULL AND verifiers IS NOT NULL;
CREATE INDEX task_held ON task (project, assignee, id) WHERE assignee IS NOT NULL;
CREATE INDEX task_failed ON task (project, id) WHERE status = 2;
CREATE INDEX task_deadline ON task (deadline_uptime) WHERE deadline_uptime IS NOT NULL;

CREATE TRIGGER task_inserted AFTER INSERT ON task BEGIN
    UPDATE project SET waiting_task_count = waiting_task_count + 1 WHERE id = NEW.project;
END;

-- The trigger counts into the project's row, so there has to be one.
INSERT INTO project (name, priority, clone_url, git_repo, version, motd, public, hidden, paused, keep_hashes,
    assign_rate, submit_rate, webhook_secret)
VALUES ('bulk', 0, '', '', '', '', 1, 0, 0, 0, 0, 0, '');
