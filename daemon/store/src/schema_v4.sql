-- Limits that were set while the daemon ran; NULL is no limit. `said_…` is what configuration or plan said then.
CREATE TABLE limits (
    scope         TEXT PRIMARY KEY,
    rate          INTEGER,
    requests      INTEGER,
    said_rate     INTEGER,
    said_requests INTEGER,
    by            TEXT NOT NULL,
    at            INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
