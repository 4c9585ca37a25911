-- How the source's change tracking was found not to tell the truth, and where the audit's walk goes on.
ALTER TABLE disks ADD COLUMN tracking_fault TEXT;
ALTER TABLE disks ADD COLUMN audited_to INTEGER NOT NULL DEFAULT 0;

CREATE TABLE audits (
    disk_pass INTEGER PRIMARY KEY REFERENCES disk_passes (id),
    body      TEXT NOT NULL
) STRICT;
