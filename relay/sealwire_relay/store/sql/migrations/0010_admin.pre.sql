-- Admin tokens, by which those who run the relay ask its control port, and what was asked (decision 0026).
--
-- Of a token its hash is here alone: it is 32 random bytes, which nobody finds from that. All columns have a size, so that
-- neither table has another one for large values.
CREATE TABLE sealwire.admin_token (
    name    varchar(64) NOT NULL,
    hash    bit(256)    NOT NULL,
    created timestamptz NOT NULL,
    revoked timestamptz,
    PRIMARY KEY (name)
);

-- The last things that were asked, numbered; a new one takes the place of the oldest once there are many.
CREATE TABLE sealwire.audit (
    number  bigint       NOT NULL,
    at      timestamptz  NOT NULL,
    token   varchar(64)  NOT NULL,
    address varchar(64)  NOT NULL,
    asked   varchar(200) NOT NULL,
    verdict varchar(64)  NOT NULL,
    PRIMARY KEY (number)
);
