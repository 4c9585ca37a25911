-- What reads of a disk's source take when all is well, in nanoseconds, by the engine's classes of sizes.
CREATE TABLE latencies (
    disk  INTEGER NOT NULL REFERENCES disks (id),
    class INTEGER NOT NULL,
    time  INTEGER NOT NULL CHECK (time >= 0),
    PRIMARY KEY (disk, class)
) STRICT, WITHOUT ROWID;

-- What was set for migrations that are over: from here on that goes with their end.
DELETE FROM limits WHERE EXISTS (
    SELECT 1 FROM migrations WHERE state_name IN ('done', 'cancelled')
        AND (scope = 'migration/' || id OR scope LIKE 'migration/' || id || '/%'));
