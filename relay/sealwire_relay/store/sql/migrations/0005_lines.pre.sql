-- In which history a record stood that a guarded stream holds since it was given back after a loss (R14). A record that
-- was pushed since a loss conflicts with what comes back; of two that come back from one history the greater rank wins.
--
-- NULL, of a record that was pushed, is what every row there is has, so no row is rewritten.

ALTER TABLE sealwire.guard ADD COLUMN line bytea;
