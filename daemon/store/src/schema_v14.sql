-- When a person went back to the source after this cutover, if somebody did.
ALTER TABLE migrations ADD COLUMN rolled_back INTEGER;
