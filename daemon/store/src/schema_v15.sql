-- What the last cutover was expected to take when it began, in seconds, as JSON; null if nobody could tell.
ALTER TABLE migrations ADD COLUMN forecast TEXT;
