-- A cutover that is to begin at a time, or is held, as JSON; null if nothing was asked.
ALTER TABLE migrations ADD COLUMN appointment TEXT;
