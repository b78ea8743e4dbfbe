-- What a vault stores, and how much it may (decision 0026).
--
-- bytes is what the segments of a stream amount to; whatever adds, replaces or deletes some moves it in the same
-- statement or transaction, under the head's lock, so that a vault's sum is a look at its heads. written is when the
-- stream was appended to last. quota is the vault's own, in the row of stream 0, and 0 where it has none.
--
-- The defaults are what streams have that a relay of the version before creates. What such a one appends is not counted.

ALTER TABLE sealwire.stream
    ADD COLUMN bytes   bigint      NOT NULL DEFAULT 0,
    ADD COLUMN quota   bigint      NOT NULL DEFAULT 0,
    ADD COLUMN written timestamptz NOT NULL DEFAULT 'epoch';

-- octet_length of a body stored EXTERNAL does not read it.
WITH stored AS (
    SELECT vault_id, stream, sum(octet_length(body)) AS bytes FROM sealwire.segment GROUP BY vault_id, stream
)
UPDATE sealwire.stream s SET bytes = g.bytes FROM stored g WHERE s.vault_id = g.vault_id AND s.stream = g.stream;
