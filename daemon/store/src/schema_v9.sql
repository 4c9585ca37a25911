-- Blocks that became pending again after they had been drained, per GiB of disk, since a comparison with the source found
-- them right; in `touched` are those since any verification did.
CREATE TABLE uncompared (
    key    INTEGER PRIMARY KEY,
    blocks BLOB NOT NULL
) STRICT;
-- What only a readback had settled so far is not known: too much is always right.
WITH RECURSIVE each (disk, chunk, chunks) AS (
    SELECT id, 0, (size + 1073741823) / 1073741824 FROM disks WHERE anchor IS NOT NULL AND size > 0
    UNION ALL SELECT disk, chunk + 1, chunks FROM each WHERE chunk + 1 < chunks
)
INSERT INTO uncompared SELECT (disk << 32) | chunk, x'01' FROM each;

-- What had proven the copy when a root was sealed; null if an older warmd sealed it.
ALTER TABLE seals ADD COLUMN proved_by TEXT;

-- The public keys of the keys that signed reports, the present one last.
CREATE TABLE report_keys (
    id    INTEGER PRIMARY KEY,
    key   TEXT NOT NULL CHECK (length(key) = 64),
    since INTEGER NOT NULL
) STRICT;
