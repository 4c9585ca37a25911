-- Hooks of cutovers: begun before they ran, ended when they were seen to end.
CREATE TABLE hooks (
    migration TEXT NOT NULL REFERENCES migrations (id),
    attempt   INTEGER NOT NULL,
    -- Among the plan's hooks.
    position  INTEGER NOT NULL,
    phase     TEXT NOT NULL,
    -- before or after it.
    side      TEXT NOT NULL,
    -- The program and its arguments, in JSON.
    command   TEXT NOT NULL,
    started   INTEGER NOT NULL,
    ended     INTEGER,
    outcome   TEXT,
    PRIMARY KEY (migration, attempt, position)
) STRICT, WITHOUT ROWID;
