-- Which migration's disk has which place, by what the place is: two names of one place are one row.
CREATE TABLE places (
    identity  TEXT PRIMARY KEY,
    migration TEXT NOT NULL REFERENCES migrations (id) ON DELETE CASCADE,
    disk      TEXT NOT NULL,
    place     TEXT NOT NULL,
    link      TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX places_of_a_migration ON places (migration, disk);
