-- Where the next cleaning of a stream begins: up to here no record is left that a greater one of its tag follows or
-- precedes. It is less than cleaned_to while a cleaning is under way: cleaned_to rises with the first rows that are
-- replaced, compacted when the last ones are.
--
-- The default is what every stream there is has, and what those that a relay of the version before creates will have.
-- A constant one is kept beside the table, so no row is rewritten.

ALTER TABLE sealwire.stream ADD COLUMN compacted bigint NOT NULL DEFAULT 0;
