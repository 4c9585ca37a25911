-- The manifest's root of each disk as it was when the cutover in `attempt` had verified the copy, and before anything
-- touched it.
CREATE TABLE seals (
    disk    INTEGER PRIMARY KEY REFERENCES disks (id),
    attempt INTEGER NOT NULL,
    root    TEXT NOT NULL CHECK (length(root) = 64),
    at      INTEGER NOT NULL
) STRICT;
