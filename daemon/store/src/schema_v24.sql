-- What could start the source VM beside warmd, as it was before a cutover took it away; null if it is not held off.
ALTER TABLE migrations ADD COLUMN held_off TEXT;
-- Whether the target VM's creation was asked for in this cutover.
ALTER TABLE migrations ADD COLUMN create_asked INTEGER NOT NULL DEFAULT 0;
-- Of one that an older warmd left in the middle of a cutover it is not known: an undo discards what may be there.
UPDATE migrations SET create_asked = 1 WHERE state_name IN ('cutting-over', 'undoing');
-- Until when the source VM is looked at once the migration is done, and since when it is seen to run then.
ALTER TABLE migrations ADD COLUMN watch_until INTEGER;
ALTER TABLE migrations ADD COLUMN source_ran INTEGER;
