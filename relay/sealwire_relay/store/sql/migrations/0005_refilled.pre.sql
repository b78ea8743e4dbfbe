-- Whether what a guarded stream holds of a tag was given back after a loss (R14). A record that was pushed since a loss
-- conflicts with what comes back; of two that come back the greater rank wins, whatever their order.
--
-- False is what every row there is has. A constant default is kept beside the table, so no row is rewritten.

ALTER TABLE sealwire.guard ADD COLUMN refilled boolean NOT NULL DEFAULT false;
