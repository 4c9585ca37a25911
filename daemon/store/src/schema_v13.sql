-- What a migration's passes taught of its disks, as JSON; null before there was anything to learn.
ALTER TABLE migrations ADD COLUMN learned TEXT;
