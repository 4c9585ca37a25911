-- What each stage of a pass did and where the pass waited, per disk. Times of these tables are nanoseconds.

-- Of the whole process while the pass ran.
ALTER TABLE passes ADD COLUMN cpu INTEGER;
-- How long the pass ran on this disk; without it there is no telemetry of it.
ALTER TABLE disk_passes ADD COLUMN elapsed INTEGER;

CREATE TABLE stages (
    disk_pass     INTEGER NOT NULL REFERENCES disk_passes (id),
    stage         TEXT NOT NULL,
    bytes         INTEGER NOT NULL,
    requests      INTEGER NOT NULL,
    in_flight_max INTEGER NOT NULL,
    busy          INTEGER NOT NULL,
    p50           INTEGER NOT NULL,
    p90           INTEGER NOT NULL,
    p99           INTEGER NOT NULL,
    longest       INTEGER NOT NULL,
    cpu           INTEGER NOT NULL,
    stalled       INTEGER NOT NULL,
    PRIMARY KEY (disk_pass, stage)
) STRICT, WITHOUT ROWID;

CREATE TABLE waits (
    disk_pass INTEGER NOT NULL REFERENCES disk_passes (id),
    wait      TEXT NOT NULL,
    count     INTEGER NOT NULL,
    time      INTEGER NOT NULL,
    PRIMARY KEY (disk_pass, wait)
) STRICT, WITHOUT ROWID;
