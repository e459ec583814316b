-- The whole database of the tracker (its version is PRAGMA user_version, set by tracker.py in the same transaction).
-- An upgrade runs it too, hence IF NOT EXISTS: only what is missing is made (UPGRADES in tracker.py does the rest).
-- One section per section of tracker.py; the comment above a table says what one of its rows is.
-- REFERENCES is for the reader: the functions check, and foreign keys switched on would cost every insert.
-- Times are unix seconds; columns named *_uptime are seconds of the tracker's own uptime (see Clock in tracker.py).

-- ── The tracker itself ──────────────────────────────────────────────────────────────────────────────────────────────

-- One fact about this file: the key that signs cookies, the uptime that it has seen.
CREATE TABLE IF NOT EXISTS meta (
    key                         TEXT PRIMARY KEY,
    value                       ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- How much there is of something that strangers can make grow: triggers count it, nobody scans. budgets.py has the names.
CREATE TABLE IF NOT EXISTS budget (
    name                        TEXT PRIMARY KEY,
    used                        INTEGER NOT NULL             -- bytes, or rows
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO budget VALUES ('logs', 0), ('stranger_logs', 0), ('projects', 0), ('workers', 0), ('managers', 0),
    ('files', 0), ('reasons', 0), ('acts', 0), ('testflinger', 0);

-- How many workers (or managers) have registered from a network of which nobody knows whether they are of any use: where
-- there are as many as may be, the network with most of them makes room. Triggers count them.
CREATE TABLE IF NOT EXISTS newcomer (
    kind                        TEXT NOT NULL,               -- workers or managers
    source                      TEXT NOT NULL,               -- the network (IPv6: /48)
    count                       INTEGER NOT NULL,
    PRIMARY KEY (kind, source)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS newcomer_count ON newcomer (kind, count);

-- A long operation that is carried out in bounded pieces and, once accepted, finished even after a crash.
CREATE TABLE IF NOT EXISTS operation (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    kind                        TEXT NOT NULL,
    project                     INTEGER NOT NULL REFERENCES project,
    manager                     INTEGER REFERENCES manager,  -- who began it; NULL: a worker
    worker                      INTEGER REFERENCES worker,   -- who began it, if it may ask what became of it
    token                       TEXT,                        -- the worker's own: a repeat of the call finds it by that
    wanted                      TEXT,                        -- which tasks, as JSON (TaskFilter)
    priority                    INTEGER,                     -- what set_priority sets
    last_task                   INTEGER NOT NULL,            -- tasks submitted later are not touched
    cursor                      ANY NOT NULL DEFAULT 0,      -- everything up to here is done
    expected                    INTEGER,                     -- how many tasks it will affect, where that is known
    affected                    INTEGER NOT NULL DEFAULT 0,
    accepted                    INTEGER NOT NULL DEFAULT 1,  -- 0: a bulk submit whose pieces are still arriving
    started                     INTEGER NOT NULL,
    started_uptime              REAL NOT NULL,
    finished                    INTEGER,                     -- NULL: it is going on
    report                      TEXT NOT NULL DEFAULT '{}'   -- what became of the lines of an upload (LinesReport)
) STRICT;
CREATE INDEX IF NOT EXISTS operation_project ON operation (project, id);
CREATE INDEX IF NOT EXISTS operation_unfinished ON operation (id) WHERE finished IS NULL;
CREATE INDEX IF NOT EXISTS operation_deletion ON operation (manager, id) WHERE kind = 'delete_project';
CREATE UNIQUE INDEX IF NOT EXISTS operation_token ON operation (worker, project, token) WHERE token IS NOT NULL;

CREATE INDEX IF NOT EXISTS operation_import ON operation (manager, token) WHERE kind = 'import_project';

-- What an import held of the budget of projects that nobody trusts, and that has come to nothing.
CREATE TRIGGER IF NOT EXISTS operation_import_discarded AFTER DELETE ON operation
WHEN OLD.kind = 'import_project' AND NOT OLD.accepted BEGIN
    UPDATE budget SET used = used - json_extract(OLD.wanted, '$.size') WHERE name = 'projects';
END;

CREATE TRIGGER IF NOT EXISTS operation_inserted AFTER INSERT ON operation BEGIN
    UPDATE project SET size = size + 400 + length(NEW.report) + ifnull(length(NEW.wanted), 0)
    WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS operation_updated AFTER UPDATE OF report ON operation BEGIN
    UPDATE project SET size = size + length(NEW.report) - length(OLD.report) WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS operation_deleted AFTER DELETE ON operation BEGIN
    UPDATE project SET size = size - (400 + length(OLD.report) + ifnull(length(OLD.wanted), 0))
    WHERE id = OLD.project AND NOT trusted;
END;

-- Some hundred tasks (JSON) of an accepted bulk submit that are not in the queue yet.
CREATE TABLE IF NOT EXISTS bulk_piece (
    operation                   INTEGER NOT NULL REFERENCES operation,
    number                      INTEGER NOT NULL,
    tasks                       BLOB NOT NULL,
    PRIMARY KEY (operation, number)
) STRICT;

-- The size counts as that of so many tasks as a piece may have: however short they are, no more comes of it.
CREATE TRIGGER IF NOT EXISTS bulk_piece_inserted AFTER INSERT ON bulk_piece BEGIN
    UPDATE project SET size = size + 12000 + length(NEW.tasks)
    WHERE id = (SELECT project FROM operation WHERE id = NEW.operation) AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS bulk_piece_deleted AFTER DELETE ON bulk_piece BEGIN
    UPDATE project SET size = size - 12000 - length(OLD.tasks)
    WHERE id = (SELECT project FROM operation WHERE id = OLD.operation) AND NOT trusted;
END;

-- ── Workers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A client that submits tasks, is assigned tasks and releases them.
CREATE TABLE IF NOT EXISTS worker (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    alias                       TEXT NOT NULL,
    secret_hash                 BLOB NOT NULL,
    created                     INTEGER NOT NULL,
    last_seen                   INTEGER NOT NULL,
    paused                      INTEGER NOT NULL DEFAULT 0,
    closed_task_count           INTEGER NOT NULL DEFAULT 0,
    source                      TEXT NOT NULL DEFAULT ''     -- the newcomer's network; '': it is none any more, or of this machine
) STRICT;
CREATE INDEX IF NOT EXISTS worker_alias ON worker (alias);
CREATE INDEX IF NOT EXISTS worker_source ON worker (source, id) WHERE source <> '';

CREATE TRIGGER IF NOT EXISTS worker_inserted AFTER INSERT ON worker BEGIN
    UPDATE budget SET used = used + 1 WHERE name = 'workers';
    INSERT INTO newcomer SELECT 'workers', NEW.source, 1 WHERE NEW.source <> ''
    ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER IF NOT EXISTS worker_known AFTER UPDATE OF source ON worker WHEN OLD.source <> '' AND NEW.source = '' BEGIN
    UPDATE newcomer SET count = count - 1 WHERE kind = 'workers' AND source = OLD.source;
    DELETE FROM newcomer WHERE kind = 'workers' AND source = OLD.source AND count <= 0;
END;
CREATE TRIGGER IF NOT EXISTS worker_deleted AFTER DELETE ON worker BEGIN
    UPDATE budget SET used = used - 1 WHERE name = 'workers';
    UPDATE newcomer SET count = count - 1 WHERE kind = 'workers' AND source = OLD.source;
    DELETE FROM newcomer WHERE kind = 'workers' AND source = OLD.source AND count <= 0;
    DELETE FROM worker_access WHERE worker = OLD.id;
    DELETE FROM tally WHERE worker = OLD.id;
END;

-- ── Projects and access ─────────────────────────────────────────────────────────────────────────────────────────────

-- A queue of tasks, with its settings and its live counts, which follow its tasks in the same transaction: Counts in
-- tracker.py writes them, and nothing else.
CREATE TABLE IF NOT EXISTS project (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    name                        TEXT NOT NULL UNIQUE,
    priority                    INTEGER NOT NULL,
    clone_url                   TEXT NOT NULL,
    git_repo                    TEXT NOT NULL COLLATE NOCASE,
    version                     TEXT NOT NULL,
    motd                        TEXT NOT NULL,
    public                      INTEGER NOT NULL,
    hidden                      INTEGER NOT NULL,
    archived                    INTEGER NOT NULL DEFAULT 0,  -- kept to be read: it is closed to workers, and in no list unless asked for
    paused                      INTEGER NOT NULL,
    chain                       INTEGER REFERENCES project,
    keep_hashes                 INTEGER NOT NULL,            -- closed tasks' hashes stay taken (kept_hash)
    retry_delay                 REAL NOT NULL DEFAULT 0,     -- seconds that a task rests after the first failed attempt
    max_lost_leases             INTEGER,                     -- 0 = any; NULL = the tracker's default
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
    delayed_task_count          INTEGER NOT NULL DEFAULT 0,
    paused_worker_count         INTEGER NOT NULL DEFAULT 0,  -- tallies with a pause: at 0 nobody looks for any
    trusted                     INTEGER NOT NULL DEFAULT 1,  -- 0: all that is in such projects shares one budget
    size                        INTEGER NOT NULL DEFAULT 0,  -- bytes of that budget; 0 in a trusted one
    creator                     INTEGER,                     -- the manager who made it, NULL: nobody knows, or a dialect
    CHECK (NOT (public AND hidden))
) STRICT;
CREATE INDEX IF NOT EXISTS project_git_repo ON project (git_repo) WHERE git_repo <> '';
CREATE INDEX IF NOT EXISTS project_chain ON project (chain) WHERE chain IS NOT NULL;

-- What weighs in a project that is not trusted: triggers weigh all but plain tasks and kept hashes, which budgets.py does.
CREATE TRIGGER IF NOT EXISTS project_inserted AFTER INSERT ON project WHEN NOT NEW.trusted BEGIN
    UPDATE project SET size = 4194304 WHERE id = NEW.id;     -- its snapshots, settings and texts
END;
CREATE TRIGGER IF NOT EXISTS project_sized AFTER UPDATE OF size ON project BEGIN
    UPDATE budget SET used = used + NEW.size - OLD.size WHERE name = 'projects';
END;
CREATE TRIGGER IF NOT EXISTS project_deleted AFTER DELETE ON project WHEN OLD.size BEGIN
    UPDATE budget SET used = used - OLD.size WHERE name = 'projects';
END;

-- What a worker may do in a project, or (request = 1) what it asks to be allowed to do.
CREATE TABLE IF NOT EXISTS worker_access (
    project                     INTEGER NOT NULL REFERENCES project,
    worker                      INTEGER NOT NULL REFERENCES worker,
    role_assign                 INTEGER NOT NULL,
    role_submit                 INTEGER NOT NULL,
    request                     INTEGER NOT NULL,
    source                      TEXT NOT NULL DEFAULT '',    -- the network that asked (IPv6: /48); '': not known, or this machine
    requested                   INTEGER NOT NULL DEFAULT 0,  -- when; 0: not known, or nobody asked
    PRIMARY KEY (project, worker)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS worker_access_worker ON worker_access (worker);
CREATE INDEX IF NOT EXISTS worker_access_request ON worker_access (project, source, requested) WHERE request;

CREATE TRIGGER IF NOT EXISTS worker_access_inserted AFTER INSERT ON worker_access BEGIN
    UPDATE project SET size = size + 200 WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS worker_access_deleted AFTER DELETE ON worker_access BEGIN
    UPDATE project SET size = size - 200 WHERE id = OLD.project AND NOT trusted;
END;

-- ── Managers ────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A person who makes and steers projects.
CREATE TABLE IF NOT EXISTS manager (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    username                    TEXT NOT NULL UNIQUE COLLATE NOCASE,
    look                        TEXT NOT NULL DEFAULT '',    -- what the name looks like: a new one has a look of its own
    password_hash               TEXT NOT NULL,
    tracker_admin               INTEGER NOT NULL,
    blocked                     INTEGER NOT NULL DEFAULT 0,  -- it may not log in, and its tokens open nothing
    register_time               INTEGER NOT NULL,
    source                      TEXT NOT NULL DEFAULT ''     -- as a worker's
) STRICT;
CREATE INDEX IF NOT EXISTS manager_look ON manager (look);
CREATE INDEX IF NOT EXISTS manager_admin ON manager (tracker_admin);
CREATE INDEX IF NOT EXISTS manager_source ON manager (source, id) WHERE source <> '';

CREATE TRIGGER IF NOT EXISTS manager_inserted AFTER INSERT ON manager BEGIN
    UPDATE budget SET used = used + 1 WHERE name = 'managers';
    INSERT INTO newcomer SELECT 'managers', NEW.source, 1 WHERE NEW.source <> ''
    ON CONFLICT DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER IF NOT EXISTS manager_known AFTER UPDATE OF source ON manager WHEN OLD.source <> '' AND NEW.source = '' BEGIN
    UPDATE newcomer SET count = count - 1 WHERE kind = 'managers' AND source = OLD.source;
    DELETE FROM newcomer WHERE kind = 'managers' AND source = OLD.source AND count <= 0;
END;
CREATE TRIGGER IF NOT EXISTS manager_deleted AFTER DELETE ON manager BEGIN
    UPDATE budget SET used = used - 1 WHERE name = 'managers';
    UPDATE newcomer SET count = count - 1 WHERE kind = 'managers' AND source = OLD.source;
    DELETE FROM newcomer WHERE kind = 'managers' AND source = OLD.source AND count <= 0;
END;

-- What a manager may do in a project: READ=1, EDIT=2, MANAGE_ACCESS=4, SECRET=8, MAINTENANCE=16.
CREATE TABLE IF NOT EXISTS manager_role (
    project                     INTEGER NOT NULL REFERENCES project,
    manager                     INTEGER NOT NULL REFERENCES manager,
    role                        INTEGER NOT NULL,
    PRIMARY KEY (project, manager)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manager_role_manager ON manager_role (manager);

-- What a manager has done: acts.py says how long it is kept.
CREATE TABLE IF NOT EXISTS act (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    time                        INTEGER NOT NULL,
    project                     INTEGER,                     -- NULL: in none, or it is gone
    manager                     INTEGER NOT NULL,            -- who need not be there any more
    username                    TEXT NOT NULL,               -- as it was then
    action                      TEXT NOT NULL,               -- the name of the function that did it, or of the operation
    details                     TEXT NOT NULL,               -- JSON: with what
    stranger                    INTEGER NOT NULL             -- of no admin, and in no project that one trusts
) STRICT;
CREATE INDEX IF NOT EXISTS act_project ON act (project, id);
CREATE INDEX IF NOT EXISTS act_stranger ON act (id) WHERE stranger;

CREATE TRIGGER IF NOT EXISTS act_inserted AFTER INSERT ON act BEGIN
    UPDATE budget SET used = used + 200 + length(CAST(NEW.details AS BLOB)) WHERE name = 'acts';
END;
CREATE TRIGGER IF NOT EXISTS act_deleted AFTER DELETE ON act BEGIN
    UPDATE budget SET used = used - 200 - length(CAST(OLD.details AS BLOB)) WHERE name = 'acts';
END;

-- A logged-in browser. Deleting the row ends it.
CREATE TABLE IF NOT EXISTS session (
    id_hash                     BLOB PRIMARY KEY,
    manager                     INTEGER NOT NULL REFERENCES manager,
    expires                     INTEGER NOT NULL,
    created                     INTEGER NOT NULL DEFAULT 0   -- 0: nobody knows
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_manager ON session (manager, expires);
CREATE INDEX IF NOT EXISTS session_expires ON session (expires);

-- An address from which a manager has logged in: strangers' failures are nothing to it.
CREATE TABLE IF NOT EXISTS login_address (
    manager                     INTEGER NOT NULL REFERENCES manager,
    address                     TEXT NOT NULL,               -- IPv6: its /64
    last_used                   INTEGER NOT NULL,
    PRIMARY KEY (manager, address)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS login_address_last_used ON login_address (manager, last_used);

-- What it made stays: others look after that. (Jobs and operations go on naming its number.)
CREATE TRIGGER IF NOT EXISTS manager_gone AFTER DELETE ON manager BEGIN
    DELETE FROM manager_role WHERE manager = OLD.id;
    DELETE FROM session WHERE manager = OLD.id;
    DELETE FROM login_address WHERE manager = OLD.id;
    DELETE FROM theeye_token WHERE manager = OLD.id;
    UPDATE testflinger_client SET manager = NULL WHERE manager = OLD.id;
    UPDATE project SET creator = NULL WHERE creator = OLD.id;
END;

-- Recent failed logins: of one account, from one address, of both together, of one browser.
CREATE TABLE IF NOT EXISTS login_failure (
    source                      TEXT PRIMARY KEY,
    failures                    INTEGER NOT NULL,
    free_uptime                 REAL NOT NULL,               -- no attempt is looked at before
    forget_uptime               REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- ── Tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A piece of work that is not closed yet: new (1), failed (2) or delayed (3); assigned when it has an assignee. Closed ones
-- are deleted. A delayed one has a status of its own, so that no index of those that are ready has it.
-- AUTOINCREMENT, because an id that came back would let a late release close somebody else's task.
CREATE TABLE IF NOT EXISTS task (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    project                     INTEGER NOT NULL,
    priority                    INTEGER NOT NULL,
    status                      INTEGER NOT NULL DEFAULT 1,
    retries                     INTEGER NOT NULL DEFAULT 0,
    max_retries                 INTEGER NOT NULL,
    lost_leases                 INTEGER NOT NULL DEFAULT 0,
    attempt                     INTEGER NOT NULL DEFAULT 0,  -- the number of the last assignment
    not_before                  REAL,                        -- until when it is delayed; NULL: it is not
    max_assign_time             INTEGER NOT NULL,            -- seconds, 0 = the tracker's default
    verification_count          INTEGER NOT NULL,
    hash64                      INTEGER,
    assignee                    INTEGER,
    assign_time                 INTEGER,
    assigned_uptime             REAL,
    deadline_uptime             REAL,
    verifiers                   INTEGER,                     -- verifier_set: who has verified it so far
    cause                       INTEGER NOT NULL DEFAULT 0,  -- why it failed; 0: it never did; -1: only not for good
    job                         INTEGER,                     -- NULL: a plain task
    recipe                      TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS task_hash ON task (project, hash64) WHERE hash64 IS NOT NULL;
-- Assignment takes the first row of one of the next two.
CREATE INDEX IF NOT EXISTS task_waiting ON task (project, priority DESC, id)
    WHERE status = 1 AND assignee IS NULL AND verifiers IS NULL;
CREATE INDEX IF NOT EXISTS task_awaiting ON task (verifiers, priority DESC, id)
    WHERE status = 1 AND assignee IS NULL AND verifiers IS NOT NULL;
CREATE INDEX IF NOT EXISTS task_verifiers ON task (verifiers) WHERE verifiers IS NOT NULL;
-- The lists of tasks go by one of these, or by task_waiting.
CREATE INDEX IF NOT EXISTS task_awaiting_project ON task (project, id)
    WHERE status = 1 AND assignee IS NULL AND verifiers IS NOT NULL;
CREATE INDEX IF NOT EXISTS task_held ON task (project, assignee, id) WHERE assignee IS NOT NULL;
CREATE INDEX IF NOT EXISTS task_failed ON task (project, cause, id) WHERE status = 2;
CREATE INDEX IF NOT EXISTS task_delayed ON task (project, id) WHERE status = 3;
CREATE INDEX IF NOT EXISTS task_not_before ON task (not_before) WHERE status = 3;
CREATE INDEX IF NOT EXISTS task_deadline ON task (deadline_uptime) WHERE deadline_uptime IS NOT NULL;

-- An assignment that has ended, for the history of its task. An assignment that closed a task at the first attempt leaves
-- no row: it would cost every task, and its worker's tally has it.
CREATE TABLE IF NOT EXISTS assignment (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    task                        INTEGER NOT NULL,
    project                     INTEGER NOT NULL,
    worker                      INTEGER NOT NULL,
    assign_time                 INTEGER NOT NULL,
    end_time                    INTEGER NOT NULL,
    outcome                     TEXT NOT NULL                -- closed, failed, skipped, verified, expired or requeued
) STRICT;
CREATE INDEX IF NOT EXISTS assignment_task ON assignment (task, id);
CREATE INDEX IF NOT EXISTS assignment_failed ON assignment (project, id) WHERE outcome IN ('failed', 'expired');

-- The last failed attempt of a task that is not closed, or the lost lease that made it FAILED.
CREATE TABLE IF NOT EXISTS failure (
    task                        INTEGER PRIMARY KEY,
    project                     INTEGER NOT NULL,
    worker                      INTEGER NOT NULL,
    end_time                    INTEGER NOT NULL,
    attempt                     INTEGER NOT NULL,
    reason                      TEXT NOT NULL                -- '': none was given, or there was no room for it
) STRICT;

CREATE TRIGGER IF NOT EXISTS failure_inserted AFTER INSERT ON failure BEGIN
    UPDATE budget SET used = used + length(CAST(NEW.reason AS BLOB)) WHERE name = 'reasons' AND NEW.reason <> '';
    UPDATE project SET size = size + 40 + length(CAST(NEW.reason AS BLOB)) WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS failure_updated AFTER UPDATE ON failure WHEN NEW.reason <> OLD.reason BEGIN
    UPDATE budget SET used = used + length(CAST(NEW.reason AS BLOB)) - length(CAST(OLD.reason AS BLOB))
    WHERE name = 'reasons';
    UPDATE project SET size = size + length(CAST(NEW.reason AS BLOB)) - length(CAST(OLD.reason AS BLOB))
    WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS failure_deleted AFTER DELETE ON failure BEGIN
    UPDATE budget SET used = used - length(CAST(OLD.reason AS BLOB)) WHERE name = 'reasons' AND OLD.reason <> '';
    UPDATE project SET size = size - 40 - length(CAST(OLD.reason AS BLOB)) WHERE id = OLD.project AND NOT trusted;
END;

-- A group of failed tasks: what their reasons have in common. It is there as long as there are any.
-- AUTOINCREMENT, because tasks that are tried again go on naming a group that is gone.
CREATE TABLE IF NOT EXISTS cause (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    project                     INTEGER NOT NULL,
    pattern                     TEXT NOT NULL,               -- '': no reason was given; '…': of all further groups
    failed_task_count           INTEGER NOT NULL DEFAULT 0,  -- Counts in counts.py writes it
    UNIQUE (project, pattern)
) STRICT;

-- What has failed in a project, of all time. Not columns of project: each task that is closed would write them anew.
CREATE TABLE IF NOT EXISTS failure_total (
    project                     INTEGER PRIMARY KEY,
    failed_attempt_count        INTEGER NOT NULL,
    lost_lease_count            INTEGER NOT NULL
) STRICT;

-- What one worker reported for one task that needs several verifications.
CREATE TABLE IF NOT EXISTS verification (
    task                        INTEGER NOT NULL,
    worker                      INTEGER NOT NULL,
    hash                        INTEGER NOT NULL,
    PRIMARY KEY (task, worker)
) STRICT, WITHOUT ROWID;

-- A set of workers that have verified the same tasks, and the first of those tasks that is ready (its head).
-- A worker seeks past all that it has verified itself by skipping the sets that it belongs to: one when tasks need two
-- verifications, at most one for each other worker when they need three. Large sets may be many more: see verifier_block.
CREATE TABLE IF NOT EXISTS verifier_set (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    project                     INTEGER NOT NULL,
    members                     TEXT NOT NULL,               -- worker ids, ascending: '3,17'
    head_priority               INTEGER,
    head_task                   INTEGER,
    large                       INTEGER NOT NULL DEFAULT 0,  -- whether it has three members or more
    UNIQUE (project, members)
) STRICT;
CREATE INDEX IF NOT EXISTS verifier_set_head ON verifier_set (project, head_priority DESC, head_task)
    WHERE head_task IS NOT NULL AND NOT large;

-- One worker's membership in a verifier_set.
CREATE TABLE IF NOT EXISTS verifier (
    verifier_set                INTEGER NOT NULL,
    worker                      INTEGER NOT NULL,
    PRIMARY KEY (verifier_set, worker)
) STRICT, WITHOUT ROWID;

-- A stretch of the order in which the heads of a project's large sets are assigned, and the workers that belong to
-- every set there: they seek past it. On level 0 it is the place of one head, (32767 - priority) << 47 | task; on the
-- levels 1 to 3 it is 64 neighbours of the level below. A stretch without heads has no row. Triggers keep them all.
CREATE TABLE IF NOT EXISTS verifier_block (
    project                     INTEGER NOT NULL,
    level                       INTEGER NOT NULL,
    block                       INTEGER NOT NULL,            -- a place >> 6 * level
    common                      TEXT NOT NULL,               -- worker ids, ascending: ',3,17,'
    PRIMARY KEY (project, level, block)
) STRICT, WITHOUT ROWID;

-- The hash of a closed task of a project with keep_hashes: it is never submitted again.
CREATE TABLE IF NOT EXISTS kept_hash (
    project                     INTEGER NOT NULL,
    hash64                      INTEGER NOT NULL,
    PRIMARY KEY (project, hash64)
) STRICT, WITHOUT ROWID;

-- What one worker holds in one project, and what it has closed there. Counts in tracker.py writes it.
CREATE TABLE IF NOT EXISTS tally (
    project                     INTEGER NOT NULL,
    worker                      INTEGER NOT NULL,
    held_task_count             INTEGER NOT NULL DEFAULT 0,
    closed_task_count           INTEGER NOT NULL DEFAULT 0,
    rolled_task_count           INTEGER NOT NULL DEFAULT 0,  -- of the closed ones: those that tally_hour has counted
    last_day_task_count         INTEGER NOT NULL DEFAULT 0,  -- sum of tally_hour; triggers keep it
    runtime_total               REAL NOT NULL DEFAULT 0,     -- seconds from assignment to closing release
    runtime_min                 REAL,
    runtime_max                 REAL,
    failures_in_row             INTEGER NOT NULL DEFAULT 0,  -- plain tasks that it has failed or lost since it closed one
    pause_uptime                REAL,                        -- until when that pauses it here; NULL: it does not
    PRIMARY KEY (project, worker)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tally_worker ON tally (worker);

CREATE TRIGGER IF NOT EXISTS tally_inserted AFTER INSERT ON tally BEGIN
    UPDATE project SET size = size + 200 WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS tally_deleted AFTER DELETE ON tally BEGIN
    UPDATE project SET size = size - 200 WHERE id = OLD.project AND NOT trusted;
END;

-- How many tasks a worker closed in one of the last 24 full hours.
CREATE TABLE IF NOT EXISTS tally_hour (
    hour                        INTEGER NOT NULL,            -- since 1970
    project                     INTEGER NOT NULL,
    worker                      INTEGER NOT NULL,
    closed_task_count           INTEGER NOT NULL,
    PRIMARY KEY (hour, project, worker)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS tally_hour_inserted AFTER INSERT ON tally_hour BEGIN
    UPDATE tally SET last_day_task_count = last_day_task_count + NEW.closed_task_count
    WHERE project = NEW.project AND worker = NEW.worker;
END;

CREATE TRIGGER IF NOT EXISTS tally_hour_updated AFTER UPDATE ON tally_hour BEGIN
    UPDATE tally SET last_day_task_count = last_day_task_count + NEW.closed_task_count - OLD.closed_task_count
    WHERE project = NEW.project AND worker = NEW.worker;
END;

CREATE TRIGGER IF NOT EXISTS tally_hour_deleted AFTER DELETE ON tally_hour BEGIN
    UPDATE tally SET last_day_task_count = last_day_task_count - OLD.closed_task_count
    WHERE project = OLD.project AND worker = OLD.worker;
END;

-- INSERT INTO stale_verifier_set finds the head of a set anew; a set that no task needs any more goes away.
CREATE VIEW IF NOT EXISTS stale_verifier_set AS SELECT id FROM verifier_set;
CREATE TRIGGER IF NOT EXISTS stale_verifier_set_inserted INSTEAD OF INSERT ON stale_verifier_set BEGIN
    UPDATE verifier_set SET (head_priority, head_task) = (
        SELECT priority, id FROM task
        WHERE verifiers = NEW.id AND status = 1 AND assignee IS NULL AND verifiers IS NOT NULL
        ORDER BY priority DESC, id LIMIT 1)
    WHERE id = NEW.id;
    DELETE FROM verifier_set
    WHERE id = NEW.id AND head_task IS NULL AND NOT EXISTS (SELECT 1 FROM task WHERE verifiers = NEW.id);
END;

CREATE TRIGGER IF NOT EXISTS task_verifiers_updated AFTER UPDATE OF status, assignee, verifiers, priority ON task
WHEN OLD.verifiers IS NOT NULL OR NEW.verifiers IS NOT NULL BEGIN
    INSERT INTO stale_verifier_set VALUES (OLD.verifiers);
    INSERT INTO stale_verifier_set SELECT NEW.verifiers WHERE NEW.verifiers IS NOT OLD.verifiers;
END;

CREATE TRIGGER IF NOT EXISTS task_verifiers_deleted AFTER DELETE ON task WHEN OLD.verifiers IS NOT NULL BEGIN
    INSERT INTO stale_verifier_set VALUES (OLD.verifiers);
    DELETE FROM verification WHERE task = OLD.id;
END;

CREATE TRIGGER IF NOT EXISTS verifier_set_head_moved AFTER UPDATE OF head_priority, head_task ON verifier_set
WHEN NEW.large AND (NEW.head_priority IS NOT OLD.head_priority OR NEW.head_task IS NOT OLD.head_task) BEGIN
    DELETE FROM verifier_block
    WHERE project = OLD.project AND level = 0 AND block = (32767 - OLD.head_priority << 47 | OLD.head_task);
    INSERT INTO verifier_block
    SELECT NEW.project, 0, 32767 - NEW.head_priority << 47 | NEW.head_task, ',' || NEW.members || ','
    WHERE NEW.head_task IS NOT NULL;
END;

-- The levels above follow each head, from below: INSERT INTO stale_verifier_block makes a block anew of those below it.
CREATE TRIGGER IF NOT EXISTS verifier_block_inserted AFTER INSERT ON verifier_block WHEN NEW.level = 0 BEGIN
    INSERT INTO stale_verifier_block VALUES (NEW.project, 1, NEW.block >> 6);
    INSERT INTO stale_verifier_block VALUES (NEW.project, 2, NEW.block >> 12);
    INSERT INTO stale_verifier_block VALUES (NEW.project, 3, NEW.block >> 18);
END;

CREATE TRIGGER IF NOT EXISTS verifier_block_deleted AFTER DELETE ON verifier_block WHEN OLD.level = 0 BEGIN
    INSERT INTO stale_verifier_block VALUES (OLD.project, 1, OLD.block >> 6);
    INSERT INTO stale_verifier_block VALUES (OLD.project, 2, OLD.block >> 12);
    INSERT INTO stale_verifier_block VALUES (OLD.project, 3, OLD.block >> 18);
END;

CREATE VIEW IF NOT EXISTS stale_verifier_block AS SELECT project, level, block FROM verifier_block;
CREATE TRIGGER IF NOT EXISTS stale_verifier_block_inserted INSTEAD OF INSERT ON stale_verifier_block BEGIN
    DELETE FROM verifier_block
    WHERE project = NEW.project AND level = NEW.level AND block = NEW.block AND NOT EXISTS (
        SELECT 1 FROM verifier_block WHERE project = NEW.project AND level = NEW.level - 1
            AND block BETWEEN NEW.block << 6 AND NEW.block << 6 | 63);
    INSERT INTO verifier_block
    SELECT NEW.project, NEW.level, NEW.block, ',' || (
        SELECT ifnull(group_concat(value, ','), '') FROM json_each('[' || trim(first.common, ',') || ']')
        WHERE NOT EXISTS (
            SELECT 1 FROM verifier_block b WHERE b.project = NEW.project AND b.level = NEW.level - 1
                AND b.block BETWEEN NEW.block << 6 AND NEW.block << 6 | 63 AND NOT instr(b.common, ',' || value || ','))
        ) || ','
    FROM verifier_block first WHERE first.project = NEW.project AND first.level = NEW.level - 1
        AND first.block BETWEEN NEW.block << 6 AND NEW.block << 6 | 63
    ORDER BY first.block LIMIT 1
    ON CONFLICT DO UPDATE SET common = excluded.common WHERE common <> excluded.common;
END;

CREATE TRIGGER IF NOT EXISTS verifier_set_deleted AFTER DELETE ON verifier_set BEGIN
    DELETE FROM verifier WHERE verifier_set = OLD.id;
END;

-- ── Jobs and templates ──────────────────────────────────────────────────────────────────────────────────────────────

-- A script as it was saved once: a job runs the one that its template had when it was triggered.
CREATE TABLE IF NOT EXISTS script (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    token                       TEXT NOT NULL UNIQUE,        -- its id for clients
    digest                      BLOB NOT NULL UNIQUE,        -- SHA-256 of the source
    md5                         TEXT NOT NULL,               -- for caches only
    source                      TEXT NOT NULL,
    project                     INTEGER REFERENCES project   -- in whose size it counts, where that is not trusted
) STRICT;
CREATE TRIGGER IF NOT EXISTS script_inserted AFTER INSERT ON script WHEN NEW.project IS NOT NULL BEGIN
    UPDATE project SET size = size + length(CAST(NEW.source AS BLOB)) WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS script_deleted AFTER DELETE ON script WHEN OLD.project IS NOT NULL BEGIN
    UPDATE project SET size = size - length(CAST(OLD.source AS BLOB)) WHERE id = OLD.project AND NOT trusted;
END;

-- A named way to make a job.
CREATE TABLE IF NOT EXISTS template (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    token                       TEXT NOT NULL UNIQUE,        -- its id for clients who must not guess others
    project                     INTEGER NOT NULL REFERENCES project,
    name                        TEXT NOT NULL,
    description                 TEXT NOT NULL,
    recipe                      TEXT NOT NULL,               -- '': JSON of the variables and arguments
    script                      INTEGER REFERENCES script,
    runas                       TEXT NOT NULL,               -- the command line that runs the script; '': it runs itself
    variables                   TEXT NOT NULL,               -- JSON: [{name, value, required, allowed, description}]
    undeclared                  INTEGER NOT NULL,            -- other variables are taken as well
    arguments                   TEXT NOT NULL,               -- JSON: [{order, type, label, value, options}]
    env                         TEXT NOT NULL,               -- JSON: {name: value}
    timeout                     REAL,                        -- seconds; NULL = the tracker's default
    max_retries                 INTEGER NOT NULL,
    priority                    INTEGER NOT NULL,
    api                         INTEGER NOT NULL,            -- may be triggered by its name
    key_hash                    BLOB,                        -- of the key that this needs; NULL = none
    secret                      TEXT NOT NULL,               -- opens this template alone
    keep_count                  INTEGER,                     -- ended jobs that are kept; NULL = all, as long as they are
    keep_time                   INTEGER,                     -- kept, in seconds; NULL = the tracker's default
    created                     INTEGER NOT NULL,
    updated                     INTEGER NOT NULL,
    deleted                     INTEGER                      -- still here for the sake of its jobs
) STRICT;
CREATE INDEX IF NOT EXISTS template_name ON template (project, name) WHERE deleted IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS template_api ON template (name) WHERE api AND deleted IS NULL;
CREATE INDEX IF NOT EXISTS template_by_name ON template (name, api DESC) WHERE deleted IS NULL;
CREATE INDEX IF NOT EXISTS template_script ON template (script) WHERE script IS NOT NULL;
CREATE INDEX IF NOT EXISTS template_deleted ON template (project) WHERE deleted IS NOT NULL;

CREATE TRIGGER IF NOT EXISTS template_inserted AFTER INSERT ON template BEGIN
    UPDATE project SET size = size + 1000 + length(CAST(NEW.description AS BLOB)) + length(CAST(NEW.recipe AS BLOB)) + length(CAST(NEW.variables AS BLOB))
        + length(CAST(NEW.arguments AS BLOB)) + length(CAST(NEW.env AS BLOB)) + length(CAST(NEW.runas AS BLOB))
    WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS template_updated AFTER UPDATE ON template BEGIN
    UPDATE project SET size = size + 1000 + length(CAST(NEW.description AS BLOB)) + length(CAST(NEW.recipe AS BLOB)) + length(CAST(NEW.variables AS BLOB))
        + length(CAST(NEW.arguments AS BLOB)) + length(CAST(NEW.env AS BLOB)) + length(CAST(NEW.runas AS BLOB))
        - (1000 + length(CAST(OLD.description AS BLOB)) + length(CAST(OLD.recipe AS BLOB)) + length(CAST(OLD.variables AS BLOB))
        + length(CAST(OLD.arguments AS BLOB)) + length(CAST(OLD.env AS BLOB)) + length(CAST(OLD.runas AS BLOB)))
    WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS template_deleted AFTER DELETE ON template BEGIN
    UPDATE project SET size = size - (1000 + length(CAST(OLD.description AS BLOB)) + length(CAST(OLD.recipe AS BLOB)) + length(CAST(OLD.variables AS BLOB))
        + length(CAST(OLD.arguments AS BLOB)) + length(CAST(OLD.env AS BLOB)) + length(CAST(OLD.runas AS BLOB)))
    WHERE id = OLD.project AND NOT trusted;
END;

-- A task that somebody wants to hear back from, or the run of a workflow. It outlives its task.
CREATE TABLE IF NOT EXISTS job (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    token                       TEXT NOT NULL UNIQUE,        -- its id for clients, not to be guessed
    project                     INTEGER NOT NULL REFERENCES project,
    template                    INTEGER REFERENCES template,
    name                        TEXT NOT NULL,
    state                       TEXT NOT NULL DEFAULT 'waiting',  -- JOB_MOVES in tracker.py has them all
    task                        INTEGER,                     -- gone from its table when the job has ended
    recipe                      TEXT NOT NULL,
    script                      INTEGER REFERENCES script,
    runas                       TEXT NOT NULL,
    variables                   TEXT NOT NULL,               -- JSON: {name: value}
    arguments                   TEXT NOT NULL,               -- JSON: [text]
    env                         TEXT NOT NULL,               -- JSON: {name: value}
    timeout                     REAL NOT NULL,               -- seconds
    max_retries                 INTEGER NOT NULL,
    priority                    INTEGER NOT NULL,
    origin                      TEXT NOT NULL,               -- the door: native, page, otter, theeye, testflinger, workflow
    worker                      INTEGER REFERENCES worker,   -- who made it, where that is known
    manager                     INTEGER REFERENCES manager,
    retry_of                    INTEGER REFERENCES job,
    workflow                    INTEGER REFERENCES workflow,  -- it is a run of this
    workflow_job                INTEGER REFERENCES job,      -- it is a step of this run
    created                     REAL NOT NULL,
    started                     REAL,                        -- the first assignment
    finished                    REAL,                        -- NULL: waiting or assigned
    updated                     REAL NOT NULL,
    assignee                    INTEGER,                     -- the present or the last one; NULL while waiting
    attempts                    INTEGER NOT NULL DEFAULT 0,
    result                      TEXT,                        -- JSON, as the last attempt's worker gave it
    reported                    TEXT,                        -- the state that the result speaks of
    output                      TEXT,                        -- JSON: what the result hands on
    warned                      INTEGER NOT NULL DEFAULT 0,
    line_count                  INTEGER NOT NULL DEFAULT 0,
    log_size                    INTEGER NOT NULL DEFAULT 0,
    sent_count                  INTEGER NOT NULL DEFAULT 0,  -- log entries that its present worker has numbered
    delayed                     INTEGER NOT NULL DEFAULT 0,  -- its task is delayed: nobody gets the job, though it waits
    dropped_count               INTEGER NOT NULL DEFAULT 0,  -- lines that were dropped, of which its log is yet to tell
    dropped_by                  TEXT NOT NULL DEFAULT ''     -- the setting by which the last of them was
) STRICT;
CREATE INDEX IF NOT EXISTS job_project ON job (project, id);
CREATE INDEX IF NOT EXISTS job_project_state ON job (project, state, id);
CREATE INDEX IF NOT EXISTS job_template ON job (template, id);
CREATE INDEX IF NOT EXISTS job_template_state ON job (template, state, id);
CREATE INDEX IF NOT EXISTS job_created ON job (created, id);
-- Assignment to those who can do nothing but jobs takes the first row of this one; an index of tasks would cost plain ones.
CREATE INDEX IF NOT EXISTS job_waiting ON job (project, priority DESC, task)
    WHERE state = 'waiting' AND task IS NOT NULL AND NOT delayed;
CREATE INDEX IF NOT EXISTS job_finished ON job (template, finished) WHERE finished IS NOT NULL;
CREATE INDEX IF NOT EXISTS job_script ON job (script) WHERE script IS NOT NULL;
CREATE INDEX IF NOT EXISTS job_workflow ON job (workflow, id) WHERE workflow IS NOT NULL;
CREATE INDEX IF NOT EXISTS job_step ON job (workflow_job, id) WHERE workflow_job IS NOT NULL;

-- A job's recipe is in its task, too; its lines are counted in its own columns.
CREATE TRIGGER IF NOT EXISTS job_inserted AFTER INSERT ON job BEGIN
    UPDATE project SET size = size + 1000 + 2 * length(CAST(NEW.recipe AS BLOB)) + length(CAST(NEW.variables AS BLOB))
        + length(CAST(NEW.arguments AS BLOB)) + length(CAST(NEW.env AS BLOB)) + length(CAST(NEW.runas AS BLOB))
        + ifnull(length(CAST(NEW.result AS BLOB)), 0) + ifnull(length(CAST(NEW.output AS BLOB)), 0)
        + NEW.log_size + 150 * NEW.line_count
    WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS job_updated AFTER UPDATE OF result, output, log_size, line_count ON job BEGIN
    UPDATE project SET size = size + ifnull(length(CAST(NEW.result AS BLOB)), 0) + ifnull(length(CAST(NEW.output AS BLOB)), 0)
        + NEW.log_size + 150 * NEW.line_count
        - (ifnull(length(CAST(OLD.result AS BLOB)), 0) + ifnull(length(CAST(OLD.output AS BLOB)), 0)
        + OLD.log_size + 150 * OLD.line_count)
    WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS job_deleted AFTER DELETE ON job BEGIN
    UPDATE project SET size = size - (1000 + 2 * length(CAST(OLD.recipe AS BLOB)) + length(CAST(OLD.variables AS BLOB))
        + length(CAST(OLD.arguments AS BLOB)) + length(CAST(OLD.env AS BLOB)) + length(CAST(OLD.runas AS BLOB))
        + ifnull(length(CAST(OLD.result AS BLOB)), 0) + ifnull(length(CAST(OLD.output AS BLOB)), 0)
        + OLD.log_size + 150 * OLD.line_count)
    WHERE id = OLD.project AND NOT trusted;
END;

-- A line of a job's log: a worker's, or the tracker's own (worker 0).
CREATE TABLE IF NOT EXISTS job_line (
    job                         INTEGER NOT NULL REFERENCES job,
    number                      INTEGER NOT NULL,            -- from 1, in the order logged
    time                        INTEGER NOT NULL,            -- as the worker says
    level                       INTEGER NOT NULL,            -- 3 ERROR … 7 TRACE
    scope                       TEXT NOT NULL,
    message                     TEXT NOT NULL,
    worker                      INTEGER NOT NULL,
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;

-- ── Workflows ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- Templates that follow one another: the start, and then what the edges say.
CREATE TABLE IF NOT EXISTS workflow (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    token                       TEXT NOT NULL UNIQUE,        -- its id for clients
    project                     INTEGER NOT NULL REFERENCES project,
    name                        TEXT NOT NULL,
    start                       INTEGER NOT NULL REFERENCES template,
    secret_hash                 BLOB NOT NULL DEFAULT x'',   -- of what opens this workflow alone
    created                     INTEGER NOT NULL,
    deleted                     INTEGER                      -- still here for the sake of its jobs
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS workflow_name ON workflow (project, name) WHERE deleted IS NULL;
CREATE INDEX IF NOT EXISTS workflow_deleted ON workflow (project) WHERE deleted IS NOT NULL;

-- When a step of the template ends in this way, a job of the target follows.
CREATE TABLE IF NOT EXISTS workflow_edge (
    workflow                    INTEGER NOT NULL REFERENCES workflow,
    template                    INTEGER NOT NULL REFERENCES template,
    ending                      TEXT NOT NULL,               -- success, failure, timeout or cancelled
    target                      INTEGER NOT NULL REFERENCES template,
    PRIMARY KEY (workflow, template, ending, target)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS workflow_deleted BEFORE DELETE ON workflow BEGIN
    DELETE FROM workflow_edge WHERE workflow = OLD.id;
    UPDATE project SET size = size - 1000 WHERE id = OLD.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS workflow_inserted AFTER INSERT ON workflow BEGIN
    UPDATE project SET size = size + 1000 WHERE id = NEW.project AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS workflow_edge_inserted AFTER INSERT ON workflow_edge BEGIN
    UPDATE project SET size = size + 100
    WHERE id = (SELECT project FROM workflow WHERE id = NEW.workflow) AND NOT trusted;
END;
CREATE TRIGGER IF NOT EXISTS workflow_edge_deleted AFTER DELETE ON workflow_edge BEGIN
    UPDATE project SET size = size - 100
    WHERE id = (SELECT project FROM workflow WHERE id = OLD.workflow) AND NOT trusted;
END;

-- ── Logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A line that a worker logged.
CREATE TABLE IF NOT EXISTS log_entry (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    received                    INTEGER NOT NULL,
    time                        INTEGER NOT NULL,            -- as the worker says
    level                       INTEGER NOT NULL,            -- 3 ERROR … 7 TRACE
    scope                       TEXT NOT NULL,
    message                     TEXT NOT NULL,
    worker                      INTEGER NOT NULL,
    task                        INTEGER,
    project                     INTEGER                      -- the task's, or the only one of which the worker held tasks
) STRICT;
CREATE INDEX IF NOT EXISTS log_entry_level ON log_entry (level, time, id);
CREATE INDEX IF NOT EXISTS log_entry_bad ON log_entry (id) WHERE level <= 4;
CREATE INDEX IF NOT EXISTS log_entry_worker ON log_entry (worker, id);
CREATE INDEX IF NOT EXISTS log_entry_project ON log_entry (project, id) WHERE project IS NOT NULL;
CREATE INDEX IF NOT EXISTS log_entry_readable ON log_entry (project, level, time, id) WHERE project IS NOT NULL;
CREATE INDEX IF NOT EXISTS log_entry_task ON log_entry (task, id) WHERE task IS NOT NULL;

-- The bytes of one worker's lines, with what each takes besides its text. Triggers count them, and the budgets of all.
CREATE TABLE IF NOT EXISTS log_share (
    worker                      INTEGER PRIMARY KEY,
    size                        INTEGER NOT NULL,
    stranger                    INTEGER NOT NULL DEFAULT 0   -- it had no access and no task when it was last looked at
) STRICT;
CREATE INDEX IF NOT EXISTS log_share_size ON log_share (size);
CREATE INDEX IF NOT EXISTS log_share_stranger ON log_share (size) WHERE stranger;

CREATE TRIGGER IF NOT EXISTS log_entry_inserted AFTER INSERT ON log_entry BEGIN
    INSERT INTO log_share (worker, size) VALUES (NEW.worker, 100 + length(CAST(NEW.scope AS BLOB)) + length(CAST(NEW.message AS BLOB)))
    ON CONFLICT DO UPDATE SET size = size + excluded.size;
END;
CREATE TRIGGER IF NOT EXISTS log_entry_deleted AFTER DELETE ON log_entry BEGIN
    UPDATE log_share SET size = size - (100 + length(CAST(OLD.scope AS BLOB)) + length(CAST(OLD.message AS BLOB)))
    WHERE worker = OLD.worker;
    DELETE FROM log_share WHERE worker = OLD.worker AND size <= 0;
END;
CREATE TRIGGER IF NOT EXISTS log_share_inserted AFTER INSERT ON log_share BEGIN
    UPDATE budget SET used = used + NEW.size WHERE name = 'logs';
    UPDATE budget SET used = used + NEW.size WHERE name = 'stranger_logs' AND NEW.stranger;
END;
CREATE TRIGGER IF NOT EXISTS log_share_updated AFTER UPDATE ON log_share BEGIN
    UPDATE budget SET used = used + NEW.size - OLD.size WHERE name = 'logs';
END;
CREATE TRIGGER IF NOT EXISTS log_share_of_stranger AFTER UPDATE ON log_share WHEN NEW.stranger OR OLD.stranger BEGIN
    UPDATE budget SET used = used + iif(NEW.stranger, NEW.size, 0) - iif(OLD.stranger, OLD.size, 0)
    WHERE name = 'stranger_logs';
END;
CREATE TRIGGER IF NOT EXISTS log_share_deleted AFTER DELETE ON log_share BEGIN
    UPDATE budget SET used = used - OLD.size WHERE name = 'logs';
    UPDATE budget SET used = used - OLD.size WHERE name = 'stranger_logs' AND OLD.stranger;
END;

-- ── Monitoring ──────────────────────────────────────────────────────────────────────────────────────────────────────

-- The counts of a project at one moment.
CREATE TABLE IF NOT EXISTS snapshot (
    project                     INTEGER NOT NULL,
    time_stamp                  INTEGER NOT NULL,
    new_task_count              INTEGER NOT NULL,            -- waiting or assigned
    failed_task_count           INTEGER NOT NULL,
    closed_task_count           INTEGER NOT NULL,
    worker_access_count         INTEGER NOT NULL,
    awaiting_verification_count INTEGER NOT NULL,
    failure_count               INTEGER NOT NULL DEFAULT 0,  -- failed attempts and lost leases until then
    PRIMARY KEY (project, time_stamp)
) STRICT, WITHOUT ROWID;

-- Where a project's notices go (notices.py), and what was so when it was last looked at.
CREATE TABLE IF NOT EXISTS notice_hook (
    project                     INTEGER PRIMARY KEY,
    url                         TEXT NOT NULL,
    kind                        TEXT NOT NULL,               -- json, slack, discord, ntfy or command
    events                      TEXT NOT NULL,               -- those that are told, with spaces between them
    failing_share               INTEGER NOT NULL,            -- percent of the last attempts
    stalled_minutes             INTEGER NOT NULL,
    known                       TEXT NOT NULL,               -- JSON (Known); empty: it was not looked at yet
    sent                        INTEGER,                     -- when a notice was taken last
    problem                     TEXT NOT NULL DEFAULT ''     -- why the last one was not
) STRICT;

-- A notice that nobody has taken yet.
CREATE TABLE IF NOT EXISTS notice (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    token                       TEXT NOT NULL,               -- by which its receiver knows it if it comes again
    project                     INTEGER NOT NULL,
    event                       TEXT NOT NULL,
    text                        TEXT NOT NULL,
    made                        INTEGER NOT NULL,
    attempts                    INTEGER NOT NULL DEFAULT 0,
    next_uptime                 REAL NOT NULL DEFAULT 0      -- not to be sent before
) STRICT;
CREATE INDEX IF NOT EXISTS notice_project ON notice (project, id);

CREATE TRIGGER IF NOT EXISTS project_noticed AFTER DELETE ON project BEGIN
    DELETE FROM notice_hook WHERE project = OLD.id;
    DELETE FROM notice WHERE project = OLD.id;
END;

-- The last push events that a project has taken: the same one again, which anybody may have kept, changes nothing.
CREATE TABLE IF NOT EXISTS push (
    id                          INTEGER PRIMARY KEY,
    project                     INTEGER NOT NULL,
    digest                      BLOB NOT NULL,               -- SHA-256 of the body
    UNIQUE (project, digest)
) STRICT;
CREATE INDEX IF NOT EXISTS push_project ON push (project);

-- ── theeye.io ───────────────────────────────────────────────────────────────────────────────────────────────────────

-- An integration token: with it another program triggers jobs, and reads them.
CREATE TABLE IF NOT EXISTS theeye_token (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    name                        TEXT NOT NULL,
    hash                        BLOB NOT NULL UNIQUE,
    admin                       INTEGER NOT NULL,            -- may write tasks, too
    manager                     INTEGER NOT NULL REFERENCES manager,  -- who made it
    created                     INTEGER NOT NULL,
    last_used                   INTEGER,
    revoked                     INTEGER                      -- NULL: it is valid
) STRICT;

-- An agent: what a worker that speaks theeye.io's protocol logs in with. It does the jobs of one project.
CREATE TABLE IF NOT EXISTS theeye_agent (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    token                       TEXT NOT NULL UNIQUE,        -- its id for clients
    secret_hash                 BLOB NOT NULL,
    worker                      INTEGER NOT NULL REFERENCES worker,
    project                     INTEGER NOT NULL REFERENCES project,
    created                     INTEGER NOT NULL
) STRICT;

-- A login of an agent. Deleting the row ends it.
CREATE TABLE IF NOT EXISTS theeye_login (
    hash                        BLOB PRIMARY KEY,
    agent                       INTEGER NOT NULL REFERENCES theeye_agent,
    expires                     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS theeye_login_agent ON theeye_login (agent, expires);

-- The machine of a project's agents. A host of theeye.io is a queue, so a project has one.
CREATE TABLE IF NOT EXISTS theeye_host (
    project                     INTEGER PRIMARY KEY REFERENCES project,
    hostname                    TEXT NOT NULL,
    version                     TEXT NOT NULL,               -- the agent's
    info                        TEXT NOT NULL,               -- JSON, as the agent sent it
    created                     INTEGER NOT NULL,
    last_seen                   INTEGER NOT NULL
) STRICT;

-- ── Testflinger ─────────────────────────────────────────────────────────────────────────────────────────────────────
-- Job ids (uuid) are UUIDs in lower case. What agents report is kept by uuid, also where no job has that one.

-- A queue of Testflinger: a project that this dialect has made. All others are closed to it.
CREATE TABLE IF NOT EXISTS testflinger_queue (
    project                     INTEGER PRIMARY KEY REFERENCES project,
    description                 TEXT,                        -- as an agent advertised it; NULL: none has
    advertised                  INTEGER,                     -- when
    restricted                  INTEGER NOT NULL DEFAULT 0,  -- only clients that are allowed it submit to it
    client                      TEXT                         -- the contributor that made it; @NETWORK: somebody without
                                                             -- credentials there; NULL: somebody else
) STRICT;

CREATE INDEX IF NOT EXISTS testflinger_queue_client ON testflinger_queue (client) WHERE client IS NOT NULL;

-- An image that the agents of a queue can provision, and the data that this takes.
CREATE TABLE IF NOT EXISTS testflinger_image (
    project                     INTEGER NOT NULL REFERENCES testflinger_queue,
    name                        TEXT NOT NULL,
    data                        TEXT NOT NULL,               -- JSON
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS testflinger_image_weighed AFTER INSERT ON testflinger_image BEGIN
    UPDATE budget SET used = used + 100 + length(CAST(NEW.name AS BLOB)) + length(CAST(NEW.data AS BLOB)) WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_image_unweighed AFTER DELETE ON testflinger_image BEGIN
    UPDATE budget SET used = used - (100 + length(CAST(OLD.name AS BLOB)) + length(CAST(OLD.data AS BLOB))) WHERE name = 'testflinger';
END;

-- An agent, as it describes itself.
CREATE TABLE IF NOT EXISTS testflinger_agent (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    name                        TEXT NOT NULL UNIQUE,
    worker                      INTEGER REFERENCES worker,   -- who holds its jobs; NULL: it has had none
    fields                      TEXT NOT NULL DEFAULT '{}',  -- JSON: state, location, queues… as it sent them
    streak_type                 TEXT,                        -- pass or fail; NULL: it has provisioned nothing yet
    streak_count                INTEGER NOT NULL DEFAULT 0,
    updated                     INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS testflinger_agent_worker ON testflinger_agent (worker) WHERE worker IS NOT NULL;
CREATE INDEX IF NOT EXISTS testflinger_agent_updated ON testflinger_agent (updated);

-- What it tells counts twice: its queues stand in a table of their own as well.
CREATE TRIGGER IF NOT EXISTS testflinger_agent_weighed AFTER INSERT ON testflinger_agent BEGIN
    UPDATE budget SET used = used + 200 + 2 * length(CAST(NEW.fields AS BLOB)) WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_agent_reweighed AFTER UPDATE OF fields ON testflinger_agent BEGIN
    UPDATE budget SET used = used + 2 * length(CAST(NEW.fields AS BLOB)) - 2 * length(CAST(OLD.fields AS BLOB))
    WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_agent_unweighed AFTER DELETE ON testflinger_agent BEGIN
    UPDATE budget SET used = used - (200 + 2 * length(CAST(OLD.fields AS BLOB))) WHERE name = 'testflinger';
END;

-- A queue that an agent listens to, by its name: there need not be such a queue yet.
CREATE TABLE IF NOT EXISTS testflinger_agent_queue (
    queue                       TEXT NOT NULL,
    agent                       INTEGER NOT NULL REFERENCES testflinger_agent,
    PRIMARY KEY (queue, agent)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS testflinger_agent_queue_agent ON testflinger_agent_queue (agent);

-- A line of an agent's own log. The last hundred are kept.
CREATE TABLE IF NOT EXISTS testflinger_agent_line (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    agent                       INTEGER NOT NULL REFERENCES testflinger_agent,
    line                        TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS testflinger_agent_line_agent ON testflinger_agent_line (agent, id);

CREATE TRIGGER IF NOT EXISTS testflinger_agent_line_weighed AFTER INSERT ON testflinger_agent_line BEGIN
    UPDATE budget SET used = used + 100 + length(CAST(NEW.line AS BLOB)) WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_agent_line_unweighed AFTER DELETE ON testflinger_agent_line BEGIN
    UPDATE budget SET used = used - (100 + length(CAST(OLD.line AS BLOB))) WHERE name = 'testflinger';
END;

-- How an agent's provisioning of one job went. The last hundred are kept.
CREATE TABLE IF NOT EXISTS testflinger_provision (
    id                          INTEGER PRIMARY KEY AUTOINCREMENT,
    agent                       INTEGER NOT NULL REFERENCES testflinger_agent,
    uuid                        TEXT NOT NULL,
    exit_code                   INTEGER NOT NULL,
    detail                      TEXT NOT NULL,
    time                        INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS testflinger_provision_agent ON testflinger_provision (agent, id);

CREATE TRIGGER IF NOT EXISTS testflinger_provision_weighed AFTER INSERT ON testflinger_provision BEGIN
    UPDATE budget SET used = used + 200 + length(CAST(NEW.detail AS BLOB)) WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_provision_unweighed AFTER DELETE ON testflinger_provision BEGIN
    UPDATE budget SET used = used - (200 + length(CAST(OLD.detail AS BLOB))) WHERE name = 'testflinger';
END;

CREATE TRIGGER IF NOT EXISTS testflinger_agent_deleted AFTER DELETE ON testflinger_agent BEGIN
    DELETE FROM testflinger_agent_queue WHERE agent = OLD.id;
    DELETE FROM testflinger_agent_line WHERE agent = OLD.id;
    DELETE FROM testflinger_provision WHERE agent = OLD.id;
END;

-- A job of a queue, whichever door it came through: what this dialect knows of it besides. job_event keeps it in step.
CREATE TABLE IF NOT EXISTS testflinger_job (
    job                         INTEGER PRIMARY KEY REFERENCES job,
    uuid                        TEXT NOT NULL UNIQUE,        -- made of the job's token, unless the client brought one
    project                     INTEGER NOT NULL,
    priority                    INTEGER NOT NULL,
    state                       TEXT NOT NULL DEFAULT 'waiting',  -- running, or the phase that its agent told
    attachments                 TEXT NOT NULL DEFAULT 'none',     -- none, waiting (nobody gets the job) or complete
    attachments_of              TEXT,                        -- uuid of the job that they were uploaded for
    client                      TEXT,                        -- who submitted it, where that is known
    secret                      INTEGER NOT NULL DEFAULT 0,  -- it names secrets of its client
    delayed                     INTEGER NOT NULL DEFAULT 0,  -- as the job's
    agent                       TEXT,                        -- who picked it ('': without a name); NULL: nobody here
    wait                        REAL,                        -- seconds from created to started; NULL: not started yet
    finished                    REAL,                        -- NULL too where a template says how long it is kept
    size                        INTEGER NOT NULL DEFAULT 0   -- bytes of its definition, and of its agent's output in its log
) STRICT;

CREATE TRIGGER IF NOT EXISTS testflinger_job_weighed AFTER INSERT ON testflinger_job BEGIN
    UPDATE budget SET used = used + NEW.size WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_job_reweighed AFTER UPDATE OF size ON testflinger_job BEGIN
    UPDATE budget SET used = used + NEW.size - OLD.size WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_job_unweighed AFTER DELETE ON testflinger_job BEGIN
    UPDATE budget SET used = used - OLD.size WHERE name = 'testflinger';
END;
CREATE INDEX IF NOT EXISTS testflinger_job_waiting ON testflinger_job (project, priority DESC, job)
    WHERE state = 'waiting' AND attachments <> 'waiting' AND NOT delayed;
CREATE INDEX IF NOT EXISTS testflinger_job_state ON testflinger_job (state, job);
CREATE INDEX IF NOT EXISTS testflinger_job_project ON testflinger_job (project, job);
CREATE INDEX IF NOT EXISTS testflinger_job_wait ON testflinger_job (project, wait) WHERE wait IS NOT NULL;
CREATE INDEX IF NOT EXISTS testflinger_job_finished ON testflinger_job (finished) WHERE finished IS NOT NULL;
CREATE INDEX IF NOT EXISTS testflinger_job_files ON testflinger_job (attachments_of) WHERE attachments_of IS NOT NULL;
CREATE INDEX IF NOT EXISTS testflinger_job_client ON testflinger_job (client) WHERE client IS NOT NULL;
CREATE INDEX IF NOT EXISTS testflinger_job_held ON testflinger_job (job)
    WHERE attachments = 'waiting' AND state = 'waiting';

-- A word by which a job can be found.
CREATE TABLE IF NOT EXISTS testflinger_tag (
    tag                         TEXT NOT NULL,
    job                         INTEGER NOT NULL REFERENCES testflinger_job,
    PRIMARY KEY (tag, job)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS testflinger_tag_job ON testflinger_tag (job);

-- An agent that is not to be given the job.
CREATE TABLE IF NOT EXISTS testflinger_exclusion (
    job                         INTEGER NOT NULL REFERENCES testflinger_job,
    agent                       TEXT NOT NULL,
    PRIMARY KEY (job, agent)
) STRICT, WITHOUT ROWID;

-- What has been reported for a job id, and how far the readers of its raw output have read.
CREATE TABLE IF NOT EXISTS testflinger_outcome (
    uuid                        TEXT PRIMARY KEY,
    size                        INTEGER NOT NULL DEFAULT 0,  -- of its results and stray output, in bytes
    output_read                 INTEGER NOT NULL DEFAULT 0,  -- the last fragment that has been handed out
    serial_read                 INTEGER NOT NULL DEFAULT 0,
    touched                     INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS testflinger_outcome_touched ON testflinger_outcome (touched);

CREATE TRIGGER IF NOT EXISTS testflinger_outcome_weighed AFTER INSERT ON testflinger_outcome BEGIN
    UPDATE budget SET used = used + 200 + NEW.size WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_outcome_reweighed AFTER UPDATE OF size ON testflinger_outcome BEGIN
    UPDATE budget SET used = used + NEW.size - OLD.size WHERE name = 'testflinger';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_outcome_unweighed AFTER DELETE ON testflinger_outcome BEGIN
    UPDATE budget SET used = used - (200 + OLD.size) WHERE name = 'testflinger';
END;

-- One top-level field of a result.
CREATE TABLE IF NOT EXISTS testflinger_result (
    uuid                        TEXT NOT NULL REFERENCES testflinger_outcome,
    name                        TEXT NOT NULL,
    value                       TEXT NOT NULL,               -- JSON
    PRIMARY KEY (uuid, name)
) STRICT, WITHOUT ROWID;

-- A piece of a phase's output. Its text is a line of the job's log; it stands here if the job is unknown, or has ended.
CREATE TABLE IF NOT EXISTS testflinger_fragment (
    uuid                        TEXT NOT NULL REFERENCES testflinger_outcome,
    kind                        TEXT NOT NULL,               -- output or serial
    id                          INTEGER NOT NULL,            -- from 1, in the order in which they came
    phase                       TEXT NOT NULL,
    number                      INTEGER NOT NULL,            -- as the agent counts, over all phases
    timestamp                   REAL NOT NULL,               -- as the agent says
    line                        INTEGER,                     -- job_line.number
    text                        TEXT,                        -- what the line has not: all, or its end
    PRIMARY KEY (uuid, kind, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS testflinger_fragment_number ON testflinger_fragment (uuid, kind, phase, number);

-- A file beside the database: what an agent made of a job (artifact), or what it needs for it (attachments).
CREATE TABLE IF NOT EXISTS testflinger_file (
    uuid                        TEXT NOT NULL,
    kind                        TEXT NOT NULL,
    name                        TEXT NOT NULL,               -- in the folder; each upload has another one
    size                        INTEGER NOT NULL,            -- bytes
    stored                      INTEGER NOT NULL,
    PRIMARY KEY (uuid, kind)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS testflinger_file_name ON testflinger_file (name);
CREATE INDEX IF NOT EXISTS testflinger_file_stored ON testflinger_file (stored, name);

CREATE TRIGGER IF NOT EXISTS testflinger_file_inserted AFTER INSERT ON testflinger_file BEGIN
    UPDATE budget SET used = used + NEW.size WHERE name = 'files';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_file_updated AFTER UPDATE OF size ON testflinger_file BEGIN
    UPDATE budget SET used = used + NEW.size - OLD.size WHERE name = 'files';
END;
CREATE TRIGGER IF NOT EXISTS testflinger_file_deleted AFTER DELETE ON testflinger_file BEGIN
    UPDATE budget SET used = used - OLD.size WHERE name = 'files';
END;

CREATE TRIGGER IF NOT EXISTS testflinger_job_deleted AFTER DELETE ON testflinger_job BEGIN
    DELETE FROM testflinger_tag WHERE job = OLD.job;
    DELETE FROM testflinger_exclusion WHERE job = OLD.job;
    DELETE FROM testflinger_outcome WHERE uuid = OLD.uuid;
END;

CREATE TRIGGER IF NOT EXISTS testflinger_outcome_deleted AFTER DELETE ON testflinger_outcome BEGIN
    DELETE FROM testflinger_result WHERE uuid = OLD.uuid;
    DELETE FROM testflinger_fragment WHERE uuid = OLD.uuid;
END;

-- A client: who may do more than anybody, or (where nobody may do anything without) who may come in at all.
CREATE TABLE IF NOT EXISTS testflinger_client (
    id                          TEXT PRIMARY KEY,            -- its name, client_id
    key_hash                    BLOB NOT NULL,
    email                       TEXT,                        -- whom to ask about it
    role                        TEXT NOT NULL,               -- contributor, agent, manager or admin
    max_priority                TEXT NOT NULL DEFAULT '{}',  -- JSON: {queue or *: the highest job_priority}
    allowed_queues              TEXT NOT NULL DEFAULT '[]',  -- JSON: [restricted queue]
    max_reservation_time        TEXT NOT NULL DEFAULT '{}',  -- JSON: {queue or *: seconds}
    manager                     INTEGER REFERENCES manager,  -- who made it; NULL: an admin client
    created                     INTEGER NOT NULL,
    last_used                   INTEGER
) STRICT, WITHOUT ROWID;

-- A refresh token: a client gets new access tokens with it. Deleting the row revokes it.
CREATE TABLE IF NOT EXISTS testflinger_refresh (
    hash                        BLOB PRIMARY KEY,
    client                      TEXT NOT NULL REFERENCES testflinger_client,
    expires                     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS testflinger_refresh_client ON testflinger_refresh (client, expires);
CREATE INDEX IF NOT EXISTS testflinger_refresh_expires ON testflinger_refresh (expires);

-- A secret that a client has left here for its jobs.
CREATE TABLE IF NOT EXISTS testflinger_secret (
    client                      TEXT NOT NULL REFERENCES testflinger_client,
    path                        TEXT NOT NULL,
    value                       TEXT NOT NULL,
    PRIMARY KEY (client, path)
) STRICT, WITHOUT ROWID;

-- Another client of the same name has other secrets.
CREATE TRIGGER IF NOT EXISTS testflinger_client_deleted AFTER DELETE ON testflinger_client BEGIN
    DELETE FROM testflinger_refresh WHERE client = OLD.id;
    DELETE FROM testflinger_secret WHERE client = OLD.id;
    UPDATE testflinger_job SET client = NULL WHERE client = OLD.id;
END;
