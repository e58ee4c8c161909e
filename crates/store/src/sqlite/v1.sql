-- Version 1. Times are milliseconds since 1970, UTC. Ids are 32 hexadecimal digits.
-- Rows of the journal (sessions, leases, audits) carry the gateway that wrote them and their place in its journal.
-- Nothing here names a peer's outer address or a destination.

CREATE TABLE gateways (
    id          TEXT PRIMARY KEY,
    created     INTEGER NOT NULL,
    heartbeat   INTEGER NOT NULL,
    seq         INTEGER NOT NULL,   -- a place in this gateway's journal that was given, if not the last
    audit_head  TEXT NOT NULL       -- the hash of its last audit row: a cut-off end is found
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
    key    TEXT PRIMARY KEY,
    value  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE users (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    name_key      TEXT NOT NULL,    -- the name in lower case
    note          TEXT NOT NULL,
    created       INTEGER NOT NULL,
    suspended_at  INTEGER,
    removed_at    INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX users_name ON users (name_key) WHERE removed_at IS NULL;
CREATE INDEX users_list ON users (name_key, id);

CREATE TABLE devices (
    id          TEXT PRIMARY KEY,
    user_id     TEXT NOT NULL REFERENCES users (id),
    name        TEXT NOT NULL,
    name_key    TEXT NOT NULL,
    note        TEXT NOT NULL,
    created     INTEGER NOT NULL,
    revoked_at  INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX devices_name ON devices (user_id, name_key) WHERE revoked_at IS NULL;
CREATE INDEX devices_list ON devices (user_id, name_key, id);

CREATE TABLE device_prefixes (
    device_id  TEXT NOT NULL REFERENCES devices (id),
    prefix     TEXT NOT NULL,
    PRIMARY KEY (device_id, prefix)
) STRICT, WITHOUT ROWID;

CREATE TABLE issuers (
    id          TEXT PRIMARY KEY,
    crl_number  INTEGER NOT NULL    -- the last number given to a revocation list (RFC 5280 section 5.2.3)
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    issuer      TEXT NOT NULL,
    serial      TEXT NOT NULL,
    key_hash    TEXT NOT NULL,
    device_id   TEXT NOT NULL REFERENCES devices (id),
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    der         BLOB NOT NULL,
    PRIMARY KEY (issuer, serial)
) STRICT;
CREATE UNIQUE INDEX certificates_identity ON certificates (serial, key_hash);
CREATE INDEX certificates_device ON certificates (device_id, not_after);

-- The only place that says a certificate is revoked. It may name certificates issued elsewhere.
CREATE TABLE revocations (
    issuer      TEXT NOT NULL,
    serial      TEXT NOT NULL,
    revoked_at  INTEGER NOT NULL,
    reason      INTEGER NOT NULL,
    PRIMARY KEY (issuer, serial)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER revocations_stay BEFORE UPDATE ON revocations
BEGIN SELECT RAISE(ABORT, 'a revocation is final'); END;
CREATE TRIGGER revocations_remain BEFORE DELETE ON revocations
BEGIN SELECT RAISE(ABORT, 'a revocation is final'); END;

-- The journal: sessions, leases and audits of the one gateway that owns this file. They share one numbering, so that
-- "everything after" is one number; together with the gateway's id a place is unique among all gateways.
CREATE TABLE sessions (
    seq                 INTEGER PRIMARY KEY,
    id                  TEXT NOT NULL CHECK (substr(id, 1, 16) = printf('%016x', seq)),
    gateway_id          TEXT NOT NULL REFERENCES gateways (id),
    device_id           TEXT NOT NULL REFERENCES devices (id),
    certificate_serial  TEXT,
    protocol            TEXT NOT NULL,
    identity            TEXT NOT NULL,
    transport           TEXT NOT NULL,
    started             INTEGER NOT NULL,
    ended               INTEGER CHECK (ended >= started),
    reason              TEXT
) STRICT;
CREATE INDEX sessions_open ON sessions (seq) WHERE ended IS NULL;

-- A lease's session is open when the lease begins. No foreign key says so, because each would cost an index.
CREATE TABLE leases (
    seq         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL,
    gateway_id  TEXT NOT NULL REFERENCES gateways (id),
    device_id   TEXT NOT NULL REFERENCES devices (id),
    session_id  TEXT NOT NULL,
    inner4      TEXT,
    inner6      TEXT,
    started     INTEGER NOT NULL,
    ended       INTEGER CHECK (ended >= started),
    CHECK (inner4 IS NOT NULL OR inner6 IS NOT NULL)
) STRICT;
CREATE INDEX leases_inner4 ON leases (inner4, started);
CREATE INDEX leases_inner6 ON leases (inner6, started);
CREATE INDEX leases_device ON leases (device_id);

-- No device has two open leases, and no two leases of an address overlap, open ones included. A lease is written after
-- all others and never opened again, so it is enough to look at the one before it; an index of open leases would be
-- written at each beginning and each end.
CREATE TRIGGER leases_follow BEFORE INSERT ON leases
BEGIN
    SELECT RAISE(ABORT, 'leases are written in the order of their places')
    WHERE NEW.seq <= (SELECT max(seq) FROM leases);
    SELECT RAISE(ABORT, 'a device has one open lease')
    WHERE (SELECT ended IS NULL FROM leases WHERE device_id = NEW.device_id ORDER BY seq DESC LIMIT 1);
    SELECT RAISE(ABORT, 'two leases of inner4 would overlap')
    WHERE (SELECT ended IS NULL OR ended > NEW.started FROM leases WHERE inner4 = NEW.inner4
        ORDER BY started DESC, seq DESC LIMIT 1);
    SELECT RAISE(ABORT, 'two leases of inner6 would overlap')
    WHERE (SELECT ended IS NULL OR ended > NEW.started FROM leases WHERE inner6 = NEW.inner6
        ORDER BY started DESC, seq DESC LIMIT 1);
END;

-- What the journal says is ended once, and changed in no other way; what is open is not deleted.
CREATE TRIGGER sessions_end_once BEFORE UPDATE ON sessions
WHEN OLD.ended IS NOT NULL OR NEW.ended IS NULL OR OLD.id <> NEW.id OR OLD.gateway_id <> NEW.gateway_id
    OR OLD.seq <> NEW.seq OR OLD.device_id <> NEW.device_id OR OLD.started <> NEW.started
    OR OLD.certificate_serial IS NOT NEW.certificate_serial OR OLD.protocol <> NEW.protocol
    OR OLD.identity <> NEW.identity OR OLD.transport <> NEW.transport
BEGIN SELECT RAISE(ABORT, 'a session is ended once and never changed'); END;
CREATE TRIGGER sessions_open_stay BEFORE DELETE ON sessions WHEN OLD.ended IS NULL
BEGIN SELECT RAISE(ABORT, 'an open session is not deleted'); END;
CREATE TRIGGER leases_end_once BEFORE UPDATE ON leases
WHEN OLD.ended IS NOT NULL OR NEW.ended IS NULL OR OLD.id <> NEW.id OR OLD.gateway_id <> NEW.gateway_id
    OR OLD.seq <> NEW.seq OR OLD.device_id <> NEW.device_id OR OLD.session_id <> NEW.session_id
    OR OLD.inner4 IS NOT NEW.inner4 OR OLD.inner6 IS NOT NEW.inner6 OR OLD.started <> NEW.started
BEGIN SELECT RAISE(ABORT, 'a lease is ended once and never changed'); END;
CREATE TRIGGER leases_open_stay BEFORE DELETE ON leases WHEN OLD.ended IS NULL
BEGIN SELECT RAISE(ABORT, 'an open lease is not deleted'); END;

CREATE TABLE audits (
    seq         INTEGER PRIMARY KEY,
    gateway_id  TEXT NOT NULL REFERENCES gateways (id),
    at          INTEGER NOT NULL,
    actor       TEXT NOT NULL,
    action      TEXT NOT NULL,
    subject     TEXT NOT NULL,
    detail      TEXT NOT NULL,      -- JSON, kept as the text that was hashed
    prev_hash   TEXT NOT NULL,
    hash        TEXT NOT NULL
) STRICT;
CREATE TRIGGER audits_stay BEFORE UPDATE ON audits
BEGIN SELECT RAISE(ABORT, 'the audit trail is never changed'); END;
CREATE TRIGGER audits_remain BEFORE DELETE ON audits
BEGIN SELECT RAISE(ABORT, 'the audit trail is never deleted'); END;
