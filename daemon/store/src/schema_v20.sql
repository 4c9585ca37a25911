-- Cutovers of the VMs of a plan together. `broken` is why it goes no further; `ended` when nothing of it happens any more.
CREATE TABLE groups (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    plan           TEXT NOT NULL,
    asked_by       TEXT NOT NULL,
    forced         INTEGER NOT NULL,
    all_or_nothing INTEGER NOT NULL,
    begun          INTEGER NOT NULL,
    broken         TEXT,
    ended          INTEGER
) STRICT;
-- One at a time.
CREATE UNIQUE INDEX groups_running ON groups (plan) WHERE ended IS NULL;
-- `attempt` is the number of the migration's last cutover before the group began.
CREATE TABLE group_members (
    group_id  INTEGER NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    migration TEXT NOT NULL REFERENCES migrations (id) ON DELETE CASCADE,
    tier      INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    PRIMARY KEY (group_id, migration)
) STRICT, WITHOUT ROWID;
-- How long the VM of the last cutover waited, off, for the others of its group, in microseconds.
ALTER TABLE migrations ADD COLUMN waited INTEGER NOT NULL DEFAULT 0;
-- After a crash those that it cut off are found without looking at all that ever were.
CREATE INDEX passes_open ON passes (migration) WHERE ended IS NULL;
