-- How often the phase was begun again without having ended before, as its daemon was gone.
ALTER TABLE phases ADD COLUMN cut INTEGER NOT NULL DEFAULT 0;
-- Whether the last cutover was forced: no window ends its waiting then.
ALTER TABLE migrations ADD COLUMN forced INTEGER NOT NULL DEFAULT 0;
