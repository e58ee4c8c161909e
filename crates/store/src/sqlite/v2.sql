-- Version 2: the trail, which says who had which block of ports when. Its records (leases, blocks, epochs, forwards,
-- clock_steps, ends) form one chain of hashes in the order of their places; what is hashed how says trail.rs.
-- A hash is 36 octets: the first four of the hash before, then the hash itself.
-- Nothing here names a peer's outer address or a destination.

ALTER TABLE gateways ADD COLUMN number INTEGER NOT NULL DEFAULT 1;          -- stands for the id in records
ALTER TABLE gateways ADD COLUMN trail_seq INTEGER NOT NULL DEFAULT 0;       -- a record that was written, and its hash:
ALTER TABLE gateways ADD COLUMN trail_hash BLOB NOT NULL                    -- a cut-off end is found
    DEFAULT X'0000000000000000000000000000000000000000000000000000000000000000';
ALTER TABLE gateways ADD COLUMN base_seq INTEGER NOT NULL DEFAULT 0;        -- the last record that was purged, or that
ALTER TABLE gateways ADD COLUMN base_hash BLOB NOT NULL                     -- precedes the chain, and its hash
    DEFAULT X'0000000000000000000000000000000000000000000000000000000000000000';
CREATE UNIQUE INDEX gateways_number ON gateways (number);

-- Leases of version 1 have no hash: they precede the chain.
ALTER TABLE leases ADD COLUMN hash BLOB CHECK (length(hash) = 36);
UPDATE gateways SET base_seq = (SELECT coalesce(max(seq), 0) FROM leases),
    trail_seq = (SELECT coalesce(max(seq), 0) FROM leases);

-- From here on a layout of NAT addresses, ports, blocks and pools is in force; NULL: none.
CREATE TABLE epochs (
    seq         INTEGER PRIMARY KEY,
    gateway_id  INTEGER NOT NULL REFERENCES gateways (number),
    started     INTEGER NOT NULL,
    layout      TEXT,
    digest      BLOB NOT NULL CHECK (length(digest) = 32),
    prev_hash   BLOB NOT NULL CHECK (length(prev_hash) = 32),   -- an epoch outlives its place in the chain
    hash        BLOB NOT NULL CHECK (length(hash) = 36)
) STRICT;

-- A block belongs to a lease and ends with it, unless it has an end of its own. The first block of a lease has the
-- place behind it, so that only others need an index by lease.
CREATE TABLE blocks (
    seq         INTEGER PRIMARY KEY,
    gateway_id  INTEGER NOT NULL REFERENCES gateways (number),
    lease       INTEGER NOT NULL,   -- the place of the lease
    epoch       INTEGER NOT NULL,   -- the place of the epoch whose layout makes a block of the number
    number      INTEGER NOT NULL,
    started     INTEGER NOT NULL,
    ended       INTEGER CHECK (ended >= started),
    hash        BLOB NOT NULL CHECK (length(hash) = 36)
) STRICT;
CREATE INDEX blocks_number ON blocks (epoch, number, started);
CREATE INDEX blocks_further ON blocks (lease) WHERE seq <> lease + 1;

CREATE TABLE forwards (
    seq         INTEGER PRIMARY KEY,
    gateway_id  INTEGER NOT NULL REFERENCES gateways (number),
    id          TEXT NOT NULL,
    device_id   TEXT NOT NULL REFERENCES devices (id),
    protocol    TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
    port        INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    to_port     INTEGER NOT NULL CHECK (to_port BETWEEN 1 AND 65535),
    started     INTEGER NOT NULL,
    expires     INTEGER,
    ended       INTEGER CHECK (ended >= started),
    hash        BLOB NOT NULL CHECK (length(hash) = 36)
) STRICT;
CREATE UNIQUE INDEX forwards_open ON forwards (protocol, port) WHERE ended IS NULL;
CREATE UNIQUE INDEX forwards_open_id ON forwards (id) WHERE ended IS NULL;
CREATE INDEX forwards_open_device ON forwards (device_id) WHERE ended IS NULL;
CREATE INDEX forwards_open_expires ON forwards (expires) WHERE ended IS NULL AND expires IS NOT NULL;
CREATE INDEX forwards_port ON forwards (protocol, port, started);

-- The clock was set by step_ms, and was `at` afterwards.
CREATE TABLE clock_steps (
    seq         INTEGER PRIMARY KEY,
    gateway_id  INTEGER NOT NULL REFERENCES gateways (number),
    at          INTEGER NOT NULL,
    step_ms     INTEGER NOT NULL,
    hash        BLOB NOT NULL CHECK (length(hash) = 36)
) STRICT;
CREATE INDEX clock_steps_at ON clock_steps (at);

-- What ended: the lease, block or forward with the place `of`. Their `ended` says the same, for look-ups.
CREATE TABLE ends (
    seq         INTEGER PRIMARY KEY,
    of          INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    hash        BLOB NOT NULL CHECK (length(hash) = 36)
) STRICT;

-- Records are added behind all others of their kind.
CREATE TRIGGER leases_are_chained BEFORE INSERT ON leases WHEN NEW.hash IS NULL
BEGIN SELECT RAISE(ABORT, 'a lease has a hash'); END;
CREATE TRIGGER epochs_follow BEFORE INSERT ON epochs
WHEN NEW.seq <= (SELECT max(seq) FROM epochs) OR NEW.started < (SELECT started FROM epochs ORDER BY seq DESC LIMIT 1)
BEGIN SELECT RAISE(ABORT, 'epochs are written in the order of their places and times'); END;
CREATE TRIGGER clock_steps_follow BEFORE INSERT ON clock_steps WHEN NEW.seq <= (SELECT max(seq) FROM clock_steps)
BEGIN SELECT RAISE(ABORT, 'clock steps are written in the order of their places'); END;
CREATE TRIGGER ends_follow BEFORE INSERT ON ends WHEN NEW.seq <= (SELECT max(seq) FROM ends)
BEGIN SELECT RAISE(ABORT, 'ends are written in the order of their places'); END;

-- No two owners have one block at once: as with leases, the one before has ended.
CREATE TRIGGER blocks_follow BEFORE INSERT ON blocks
BEGIN
    SELECT RAISE(ABORT, 'blocks are written in the order of their places')
    WHERE NEW.seq <= (SELECT max(seq) FROM blocks);
    SELECT RAISE(ABORT, 'a block belongs to an open lease before it')
    WHERE NEW.seq <= NEW.lease OR NOT EXISTS (SELECT 1 FROM leases WHERE seq = NEW.lease AND ended IS NULL);
    SELECT RAISE(ABORT, 'a block is one of an epoch')
    WHERE NOT EXISTS (SELECT 1 FROM epochs WHERE seq = NEW.epoch);
    SELECT RAISE(ABORT, 'two owners of a block would overlap')
    WHERE (SELECT ended IS NULL OR ended > NEW.started FROM (
        SELECT coalesce(b.ended, l.ended) AS ended FROM blocks b LEFT JOIN leases l ON l.seq = b.lease
        WHERE b.epoch = NEW.epoch AND b.number = NEW.number ORDER BY b.started DESC, b.seq DESC LIMIT 1));
END;
CREATE TRIGGER forwards_follow BEFORE INSERT ON forwards
BEGIN
    SELECT RAISE(ABORT, 'forwards are written in the order of their places')
    WHERE NEW.seq <= (SELECT max(seq) FROM forwards);
    SELECT RAISE(ABORT, 'two forwards of a port would overlap')
    WHERE (SELECT ended IS NULL OR ended > NEW.started FROM forwards
        WHERE protocol = NEW.protocol AND port = NEW.port ORDER BY started DESC, seq DESC LIMIT 1);
END;

-- A record is ended once, and changed in no other way.
DROP TRIGGER leases_end_once;
CREATE TRIGGER leases_end_once BEFORE UPDATE ON leases
WHEN OLD.ended IS NOT NULL OR NEW.ended IS NULL OR OLD.id <> NEW.id OR OLD.gateway_id <> NEW.gateway_id
    OR OLD.seq <> NEW.seq OR OLD.device_id <> NEW.device_id OR OLD.session_id <> NEW.session_id
    OR OLD.inner4 IS NOT NEW.inner4 OR OLD.inner6 IS NOT NEW.inner6 OR OLD.started <> NEW.started
    OR OLD.hash IS NOT NEW.hash
BEGIN SELECT RAISE(ABORT, 'a lease is ended once and never changed'); END;
CREATE TRIGGER blocks_end_once BEFORE UPDATE ON blocks
WHEN OLD.ended IS NOT NULL OR NEW.ended IS NULL OR OLD.seq <> NEW.seq OR OLD.gateway_id <> NEW.gateway_id
    OR OLD.lease <> NEW.lease OR OLD.epoch <> NEW.epoch OR OLD.number <> NEW.number OR OLD.started <> NEW.started
    OR OLD.hash <> NEW.hash
BEGIN SELECT RAISE(ABORT, 'a block is ended once and never changed'); END;
CREATE TRIGGER forwards_end_once BEFORE UPDATE ON forwards
WHEN OLD.ended IS NOT NULL OR NEW.ended IS NULL OR OLD.seq <> NEW.seq OR OLD.gateway_id <> NEW.gateway_id
    OR OLD.id <> NEW.id OR OLD.device_id <> NEW.device_id OR OLD.protocol <> NEW.protocol OR OLD.port <> NEW.port
    OR OLD.to_port <> NEW.to_port OR OLD.started <> NEW.started OR OLD.expires IS NOT NEW.expires
    OR OLD.hash <> NEW.hash
BEGIN SELECT RAISE(ABORT, 'a forward is ended once and never changed'); END;
CREATE TRIGGER epochs_stay BEFORE UPDATE ON epochs
BEGIN SELECT RAISE(ABORT, 'an epoch is never changed'); END;
CREATE TRIGGER clock_steps_stay BEFORE UPDATE ON clock_steps
BEGIN SELECT RAISE(ABORT, 'a clock step is never changed'); END;
CREATE TRIGGER ends_stay BEFORE UPDATE ON ends
BEGIN SELECT RAISE(ABORT, 'an end is never changed'); END;

-- Only what the base of the chain has passed is deleted; an epoch only when nothing refers to it any more.
CREATE TRIGGER leases_remain BEFORE DELETE ON leases WHEN OLD.seq > (SELECT base_seq FROM gateways)
BEGIN SELECT RAISE(ABORT, 'the trail is purged from its beginning'); END;
CREATE TRIGGER blocks_remain BEFORE DELETE ON blocks WHEN OLD.seq > (SELECT base_seq FROM gateways)
BEGIN SELECT RAISE(ABORT, 'the trail is purged from its beginning'); END;
CREATE TRIGGER forwards_remain BEFORE DELETE ON forwards WHEN OLD.seq > (SELECT base_seq FROM gateways)
BEGIN SELECT RAISE(ABORT, 'the trail is purged from its beginning'); END;
CREATE TRIGGER clock_steps_remain BEFORE DELETE ON clock_steps WHEN OLD.seq > (SELECT base_seq FROM gateways)
BEGIN SELECT RAISE(ABORT, 'the trail is purged from its beginning'); END;
CREATE TRIGGER ends_remain BEFORE DELETE ON ends WHEN OLD.seq > (SELECT base_seq FROM gateways)
BEGIN SELECT RAISE(ABORT, 'the trail is purged from its beginning'); END;
CREATE TRIGGER epochs_remain BEFORE DELETE ON epochs
WHEN OLD.seq > (SELECT base_seq FROM gateways) OR OLD.seq = (SELECT max(seq) FROM epochs)
    OR EXISTS (SELECT 1 FROM blocks WHERE epoch = OLD.seq)
BEGIN SELECT RAISE(ABORT, 'an epoch is kept for as long as a block is one of it'); END;
