-- What each source had when it was last looked at: its VMs as JSON.
CREATE TABLE inventories (source TEXT PRIMARY KEY, seen INTEGER NOT NULL, vms TEXT NOT NULL) STRICT, WITHOUT ROWID;
