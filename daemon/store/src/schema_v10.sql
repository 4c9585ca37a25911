-- When the target VM's start was asked for in this cutover, which is before it was seen to run.
ALTER TABLE migrations ADD COLUMN start_asked INTEGER;
-- An older warmd did not keep it: where it may have asked, it did.
UPDATE migrations SET start_asked = since WHERE state LIKE '%start-vm%' OR target_running IS NOT NULL;
