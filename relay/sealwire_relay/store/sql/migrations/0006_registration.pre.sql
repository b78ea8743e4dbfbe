-- Who may make vaults (decision 0018).
--
-- A secret of this database: of it and a vault's id the relay makes the vault's receipt, so that it knows a vault again
-- that it has lost, and by which nobody else can tell anything. It is in every backup. 122 of its bits are random.
ALTER TABLE sealwire.relay ADD COLUMN receipt_key uuid NOT NULL DEFAULT gen_random_uuid();

-- How many vaults were made with the registration tokens of a serial. There are at most as many rows as vaults.
CREATE TABLE sealwire.token (
    serial uuid    NOT NULL,
    vaults integer NOT NULL,
    PRIMARY KEY (serial)
);
