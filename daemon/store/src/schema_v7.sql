-- Blocks that became pending again after they had been drained, per GiB of disk, since a verification of them passed.
CREATE TABLE touched (
    key    INTEGER PRIMARY KEY,
    blocks BLOB NOT NULL
) STRICT;
-- Nobody noted it so far: too much is always right.
WITH RECURSIVE each (disk, chunk, chunks) AS (
    SELECT id, 0, (size + 1073741823) / 1073741824 FROM disks WHERE anchor IS NOT NULL AND size > 0
    UNION ALL SELECT disk, chunk + 1, chunks FROM each WHERE chunk + 1 < chunks
)
INSERT INTO touched SELECT (disk << 32) | chunk, x'01' FROM each;

-- How far a verification came that was stopped or cut off, and of which state of the ledger that is true.
CREATE TABLE verifications (
    disk    INTEGER NOT NULL REFERENCES disks (id),
    what    TEXT NOT NULL,
    seed    INTEGER,
    ledger  TEXT NOT NULL,
    sure_to INTEGER NOT NULL CHECK (sure_to >= 0),
    PRIMARY KEY (disk, what)
) STRICT, WITHOUT ROWID;
