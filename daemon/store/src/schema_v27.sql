-- Who may do what over the API, beside the daemon's own user.
CREATE TABLE grants (
    subject TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    -- JSON array of patterns of plan names; empty: all plans.
    plans TEXT NOT NULL,
    by TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
