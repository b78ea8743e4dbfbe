-- Vaults that were deleted, of which something is left: segments, guards, verdicts, positions, mailboxes. They are deleted
-- in steps after the link that ends the vault; a row here goes with the last of them, so the table is empty mostly. What
-- stays for ever are the membership log and the members, so that devices that come late hear of it. The head of stream 0
-- has epoch 0 then, and there are no other heads.
CREATE TABLE sealwire.ended (
    vault_id uuid NOT NULL,
    PRIMARY KEY (vault_id)
);
