-- By which moment the target's disks were given to the target VM in this cutover, and by which they were taken back
-- from it last, if they were: the note beside them says the same.
ALTER TABLE migrations ADD COLUMN given_over INTEGER;
ALTER TABLE migrations ADD COLUMN taken_back INTEGER;
