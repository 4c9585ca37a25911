-- What a pass's snapshot cost the VM, in microseconds; NULL if the source does not report it.
ALTER TABLE passes ADD COLUMN snapshot_made INTEGER;
ALTER TABLE passes ADD COLUMN snapshot_removed INTEGER;
