-- Under which epoch's key the record is sealed that a guarded stream holds of a tag: what is sealed anew takes its place
-- only under a later one (R5).
--
-- 0: not known, as of every row there is, so no row is rewritten. What takes the place of such a record names it by its
-- salt all the same, and so was made by who has it.

ALTER TABLE sealwire.guard ADD COLUMN epoch integer NOT NULL DEFAULT 0;
