-- Times are microseconds since 1970 in UTC. `key` columns are (disk << 32) | number: a disk's rows lie together.

CREATE TABLE plans (
    name    TEXT PRIMARY KEY,
    body    TEXT NOT NULL,
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE migrations (
    id             TEXT PRIMARY KEY,
    plan           TEXT NOT NULL,
    source         TEXT NOT NULL,
    target         TEXT NOT NULL,
    vm             TEXT NOT NULL,
    vm_name        TEXT NOT NULL,
    target_name    TEXT NOT NULL,
    machine        TEXT NOT NULL,
    state_name     TEXT NOT NULL,
    state          TEXT NOT NULL,
    since          INTEGER NOT NULL,
    created        INTEGER NOT NULL,
    warnings       TEXT NOT NULL,
    attempt        INTEGER NOT NULL DEFAULT 0,
    was_running    INTEGER,
    source_stopped INTEGER,
    target_running INTEGER
) STRICT;

-- Two migrations of one VM would fight over its marks.
CREATE UNIQUE INDEX one_live_migration_of_a_vm ON migrations (source, vm)
    WHERE state_name NOT IN ('done', 'cancelled');

CREATE TABLE disks (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    migration  TEXT NOT NULL REFERENCES migrations (id),
    key        TEXT NOT NULL,
    size       INTEGER NOT NULL CHECK (size >= 0),
    location   TEXT NOT NULL,
    place      TEXT,
    reads_zero INTEGER NOT NULL,
    anchor     TEXT,
    UNIQUE (migration, key)
) STRICT;

-- What may differ on the target, per GiB of disk; a chunk with nothing pending has no row.
CREATE TABLE chunks (
    key     INTEGER PRIMARY KEY,
    pending BLOB NOT NULL,
    trusted BLOB NOT NULL
) STRICT;

-- The manifest: 64 hashes to a page; a page of nothing but zero blocks has no row.
CREATE TABLE pages (
    key    INTEGER PRIMARY KEY,
    hashes BLOB NOT NULL CHECK (length(hashes) = 1024)
) STRICT;

CREATE TABLE passes (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    migration TEXT NOT NULL REFERENCES migrations (id),
    number    INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    started   INTEGER NOT NULL,
    ended     INTEGER,
    error     TEXT,
    UNIQUE (migration, number)
) STRICT;

CREATE TABLE disk_passes (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    pass     INTEGER NOT NULL REFERENCES passes (id),
    disk     INTEGER NOT NULL REFERENCES disks (id),
    pending  INTEGER NOT NULL,
    changed  INTEGER NOT NULL,
    extents  INTEGER NOT NULL,
    unknown  TEXT,
    mark     TEXT NOT NULL,
    read     INTEGER NOT NULL DEFAULT 0,
    written  INTEGER NOT NULL DEFAULT 0,
    zeroed   INTEGER NOT NULL DEFAULT 0,
    skipped  INTEGER NOT NULL DEFAULT 0,
    drained  INTEGER NOT NULL DEFAULT 0,
    requests INTEGER NOT NULL DEFAULT 0,
    batches  INTEGER NOT NULL DEFAULT 0,
    UNIQUE (pass, disk)
) STRICT;

CREATE TABLE phases (
    migration TEXT NOT NULL REFERENCES migrations (id),
    attempt   INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    phase     TEXT NOT NULL,
    started   INTEGER NOT NULL,
    ended     INTEGER,
    outcome   TEXT,
    PRIMARY KEY (migration, attempt, phase)
) STRICT, WITHOUT ROWID;

CREATE TABLE verdicts (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    migration TEXT NOT NULL REFERENCES migrations (id),
    body      TEXT NOT NULL
) STRICT;
CREATE INDEX verdicts_of_a_migration ON verdicts (migration);

CREATE TABLE events (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    migration TEXT REFERENCES migrations (id),
    by        TEXT NOT NULL,
    kind      TEXT NOT NULL,
    text      TEXT NOT NULL
) STRICT;
CREATE INDEX events_of_a_migration ON events (migration);

CREATE TRIGGER events_stay_as_they_are BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
