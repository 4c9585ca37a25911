-- The newest hashes of a manifest, as their batches brought them, until they are folded into the pages: the blocks from
-- `first` to `last` are within. Beside it, so that looking for them reads short rows, the hashes themselves.
CREATE TABLE recent (
    key   INTEGER PRIMARY KEY,
    first INTEGER NOT NULL,
    last  INTEGER NOT NULL
) STRICT;
CREATE TABLE recent_hashes (
    key  INTEGER PRIMARY KEY,
    body BLOB NOT NULL CHECK (length(body) > 0 AND length(body) % 20 = 0)
) STRICT;

-- How many they are: what decides on the folding.
CREATE TABLE recent_counts (
    disk   INTEGER PRIMARY KEY REFERENCES disks (id),
    hashes INTEGER NOT NULL CHECK (hashes >= 0)
) STRICT;
