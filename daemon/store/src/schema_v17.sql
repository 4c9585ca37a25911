-- The last conversion of each migration's disks: before the first byte of it is written into them it is here, by the id
-- that is noted beside the disks.
CREATE TABLE conversions (
    migration TEXT PRIMARY KEY REFERENCES migrations (id),
    id TEXT NOT NULL,
    -- Of the cutover.
    attempt INTEGER NOT NULL,
    -- The number of the last pass before it: with the next one it is over.
    pass INTEGER NOT NULL,
    -- The command, what it handed back and what it changed, as JSON.
    conversion TEXT NOT NULL,
    -- When all of it was on the disks; null before.
    committed INTEGER
) STRICT;
