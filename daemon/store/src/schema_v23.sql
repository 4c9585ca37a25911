-- What older passes did on a disk, by the hour (since 1970) in which they began.
CREATE TABLE pass_hours (
    migration  TEXT NOT NULL REFERENCES migrations (id),
    hour       INTEGER NOT NULL,
    key        TEXT NOT NULL,
    passes     INTEGER NOT NULL,
    failed     INTEGER NOT NULL,
    changed    INTEGER NOT NULL,
    read       INTEGER NOT NULL,
    written    INTEGER NOT NULL,
    zeroed     INTEGER NOT NULL,
    skipped    INTEGER NOT NULL,
    drained    INTEGER NOT NULL,
    requests   INTEGER NOT NULL,
    audits     INTEGER NOT NULL,
    checked    INTEGER NOT NULL,
    mismatched INTEGER NOT NULL,
    PRIMARY KEY (migration, hour, key)
) STRICT, WITHOUT ROWID;
-- Has a row while old lines of the journal are taken out, within that transaction.
CREATE TABLE thinning (id INTEGER PRIMARY KEY) STRICT;
DROP TRIGGER events_stay;
CREATE TRIGGER events_stay BEFORE DELETE ON events WHEN NOT EXISTS (SELECT 1 FROM thinning)
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
