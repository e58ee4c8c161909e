-- A database as schema version 1 wrote it. Frozen: it shows that such databases can still be read.
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE gateways (
    id          TEXT PRIMARY KEY,
    created     INTEGER NOT NULL,
    heartbeat   INTEGER NOT NULL,
    seq         INTEGER NOT NULL,   -- a place in this gateway's journal that was given, if not the last
    audit_head  TEXT NOT NULL       -- the hash of its last audit row: a cut-off end is found
) STRICT, WITHOUT ROWID;
INSERT INTO gateways VALUES('b4f9954ac6c9fd74149ff51e5aedbda6',1000,14000,13,'fb3701f57ec2d5d5125b0b48c172b2f51a03bc28f8d0fb45aaa8d25a76679ae9');
CREATE TABLE settings (
    key    TEXT PRIMARY KEY,
    value  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO settings VALUES('greeting','hello');
CREATE TABLE users (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    name_key      TEXT NOT NULL,    -- the name in lower case
    note          TEXT NOT NULL,
    created       INTEGER NOT NULL,
    suspended_at  INTEGER,
    removed_at    INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO users VALUES('6e1aff87b8a067c0cd3abc0bce252ceb','bob','bob','',4000,NULL,8000);
INSERT INTO users VALUES('801a29689a02729b12f4dfe205b9e3a7','ann','ann','',2000,NULL,NULL);
CREATE TABLE devices (
    id          TEXT PRIMARY KEY,
    user_id     TEXT NOT NULL REFERENCES users (id),
    name        TEXT NOT NULL,
    name_key    TEXT NOT NULL,
    note        TEXT NOT NULL,
    created     INTEGER NOT NULL,
    revoked_at  INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO devices VALUES('c0123e5595d1b609b96a7540bd6433bc','6e1aff87b8a067c0cd3abc0bce252ceb','phone','phone','',5000,8000);
INSERT INTO devices VALUES('ff5c1884e73c100e2b9940a177614985','801a29689a02729b12f4dfe205b9e3a7','laptop','laptop','',3000,NULL);
CREATE TABLE device_prefixes (
    device_id  TEXT NOT NULL REFERENCES devices (id),
    prefix     TEXT NOT NULL,
    PRIMARY KEY (device_id, prefix)
) STRICT, WITHOUT ROWID;
INSERT INTO device_prefixes VALUES('ff5c1884e73c100e2b9940a177614985','192.168.7.0/24');
CREATE TABLE issuers (
    id          TEXT PRIMARY KEY,
    crl_number  INTEGER NOT NULL    -- the last number given to a revocation list (RFC 5280 section 5.2.3)
) STRICT, WITHOUT ROWID;
INSERT INTO issuers VALUES('ca',1);
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
INSERT INTO certificates VALUES('ca','01','0101010101010101010101010101010101010101010101010101010101010101','ff5c1884e73c100e2b9940a177614985',6000,3606000,X'3001');
INSERT INTO certificates VALUES('ca','02','0202020202020202020202020202020202020202020202020202020202020202','c0123e5595d1b609b96a7540bd6433bc',7000,3607000,X'3002');
CREATE TABLE revocations (
    issuer      TEXT NOT NULL,
    serial      TEXT NOT NULL,
    revoked_at  INTEGER NOT NULL,
    reason      INTEGER NOT NULL,
    PRIMARY KEY (issuer, serial)
) STRICT, WITHOUT ROWID;
INSERT INTO revocations VALUES('ca','02',8000,5);
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
INSERT INTO sessions VALUES(10,'000000000000000a5c7b743eaef7484f','b4f9954ac6c9fd74149ff51e5aedbda6','ff5c1884e73c100e2b9940a177614985',NULL,'test','default','udp',9000,11000,'client left');
INSERT INTO sessions VALUES(12,'000000000000000c7a4407a768cffcf6','b4f9954ac6c9fd74149ff51e5aedbda6','ff5c1884e73c100e2b9940a177614985',NULL,'test','default','udp',12000,NULL,NULL);
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
INSERT INTO leases VALUES(11,'27606988178ff1bbbdbf4b176df8e134','b4f9954ac6c9fd74149ff51e5aedbda6','ff5c1884e73c100e2b9940a177614985','000000000000000a5c7b743eaef7484f','10.88.0.2','fd88::2',10000,11000);
INSERT INTO leases VALUES(13,'573cf6dc0a2cc0a6b7986d401ada9fe6','b4f9954ac6c9fd74149ff51e5aedbda6','ff5c1884e73c100e2b9940a177614985','000000000000000c7a4407a768cffcf6','10.88.0.2','fd88::2',13000,NULL);
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
INSERT INTO audits VALUES(1,'b4f9954ac6c9fd74149ff51e5aedbda6',2000,'tester','user.add','ann','{"id":"801a29689a02729b12f4dfe205b9e3a7"}','0000000000000000000000000000000000000000000000000000000000000000','5b4a789fae019f2116d35d637d5d2962c2303d059a4481dd4d2663e2f40813df');
INSERT INTO audits VALUES(2,'b4f9954ac6c9fd74149ff51e5aedbda6',3000,'tester','device.add','ann/laptop','{"id":"ff5c1884e73c100e2b9940a177614985","prefixes":[]}','5b4a789fae019f2116d35d637d5d2962c2303d059a4481dd4d2663e2f40813df','b41024555fa6392a2e15dbf92928998a8daef5a43d7ec7c335d5a4963c695c6c');
INSERT INTO audits VALUES(3,'b4f9954ac6c9fd74149ff51e5aedbda6',4000,'tester','user.add','bob','{"id":"6e1aff87b8a067c0cd3abc0bce252ceb"}','b41024555fa6392a2e15dbf92928998a8daef5a43d7ec7c335d5a4963c695c6c','75e0f252af2cb3dfe739c16db1946f83401ea308fbcdae26d085e9c775cd9553');
INSERT INTO audits VALUES(4,'b4f9954ac6c9fd74149ff51e5aedbda6',5000,'tester','device.add','bob/phone','{"id":"c0123e5595d1b609b96a7540bd6433bc","prefixes":[]}','75e0f252af2cb3dfe739c16db1946f83401ea308fbcdae26d085e9c775cd9553','18a297dd6114b6a0ec31f0c22dd1d5e04c146f30d3564d0d98ba8ef0a6e1c303');
INSERT INTO audits VALUES(5,'b4f9954ac6c9fd74149ff51e5aedbda6',6000,'tester','certificate.add','ann/laptop','{"issuer":"ca","key":"0101010101010101010101010101010101010101010101010101010101010101","serial":"01"}','18a297dd6114b6a0ec31f0c22dd1d5e04c146f30d3564d0d98ba8ef0a6e1c303','9a86767c2c2b5ae12f813fc12b97581cde3d0c73986efbafea902b1c93258ce6');
INSERT INTO audits VALUES(6,'b4f9954ac6c9fd74149ff51e5aedbda6',7000,'tester','certificate.add','bob/phone','{"issuer":"ca","key":"0202020202020202020202020202020202020202020202020202020202020202","serial":"02"}','9a86767c2c2b5ae12f813fc12b97581cde3d0c73986efbafea902b1c93258ce6','e5b3b18d32112de73bc6c0f8b7175a78cae3eec007e82d8b70929b7f4453aafc');
INSERT INTO audits VALUES(7,'b4f9954ac6c9fd74149ff51e5aedbda6',8000,'tester','device.prefixes','ann/laptop','{"prefixes":["192.168.7.0/24"]}','e5b3b18d32112de73bc6c0f8b7175a78cae3eec007e82d8b70929b7f4453aafc','37a85bbee87e3447ee12904ac3be4be719b00670a85f0d79ab8eafd23aae598a');
INSERT INTO audits VALUES(8,'b4f9954ac6c9fd74149ff51e5aedbda6',8000,'tester','setting.set','greeting','{"removed":false}','37a85bbee87e3447ee12904ac3be4be719b00670a85f0d79ab8eafd23aae598a','5d652b6f1835f4c6dd95af360e0cc0c5b68c16c4ed981e6d8b066bc58165f374');
INSERT INTO audits VALUES(9,'b4f9954ac6c9fd74149ff51e5aedbda6',8000,'tester','user.remove','bob','{"certificates":1,"devices":1,"id":"6e1aff87b8a067c0cd3abc0bce252ceb"}','5d652b6f1835f4c6dd95af360e0cc0c5b68c16c4ed981e6d8b066bc58165f374','fb3701f57ec2d5d5125b0b48c172b2f51a03bc28f8d0fb45aaa8d25a76679ae9');
CREATE UNIQUE INDEX users_name ON users (name_key) WHERE removed_at IS NULL;
CREATE INDEX users_list ON users (name_key, id);
CREATE UNIQUE INDEX devices_name ON devices (user_id, name_key) WHERE revoked_at IS NULL;
CREATE INDEX devices_list ON devices (user_id, name_key, id);
CREATE UNIQUE INDEX certificates_identity ON certificates (serial, key_hash);
CREATE INDEX certificates_device ON certificates (device_id, not_after);
CREATE INDEX sessions_open ON sessions (seq) WHERE ended IS NULL;
CREATE INDEX leases_inner4 ON leases (inner4, started);
CREATE INDEX leases_inner6 ON leases (inner6, started);
CREATE INDEX leases_device ON leases (device_id);
CREATE TRIGGER revocations_stay BEFORE UPDATE ON revocations
BEGIN SELECT RAISE(ABORT, 'a revocation is final'); END;
CREATE TRIGGER revocations_remain BEFORE DELETE ON revocations
BEGIN SELECT RAISE(ABORT, 'a revocation is final'); END;
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
CREATE TRIGGER audits_stay BEFORE UPDATE ON audits
BEGIN SELECT RAISE(ABORT, 'the audit trail is never changed'); END;
CREATE TRIGGER audits_remain BEFORE DELETE ON audits
BEGIN SELECT RAISE(ABORT, 'the audit trail is never deleted'); END;
COMMIT;
PRAGMA application_id = 1633970548;
PRAGMA user_version = 1;
