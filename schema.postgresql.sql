-- The catalog of cloudmanager on PostgreSQL, schema 1, for reading.
--
-- Databases are made and upgraded by `cm_setup_db URL`; this file makes the same tables
-- (`psql URL -f schema.postgresql.sql`), and a test keeps the two alike.
-- Sizes and counts are bytes or pieces, times are Unix seconds.

-- Every file of the pool. `name` is readable text; where the file's name is not UTF-8,
-- `name_bytes` holds its bytes.
CREATE TABLE files (
    hash TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    name_bytes BYTEA,
    size BIGINT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    CONSTRAINT files_pkey PRIMARY KEY (hash),
    CONSTRAINT files_hash_form CHECK (hash ~ '^[0-9a-f]{64}$'),
    CONSTRAINT files_size_positive CHECK (size >= 0)
);

-- Every copy of a file, and every copy that a host still owes: then `status` is 'queued' and
-- `location` is ''. `external`: a mover put it under a user's name, the pool leaves it alone.
CREATE TABLE uploads (
    hash TEXT COLLATE "C" NOT NULL,
    host TEXT COLLATE "C" NOT NULL,
    location TEXT COLLATE "C" NOT NULL,
    status TEXT NOT NULL,
    external BOOLEAN NOT NULL,
    error TEXT,
    attempts INTEGER NOT NULL,
    stored_at DOUBLE PRECISION,
    checksum_kind TEXT,
    checksum_value TEXT,
    checksum_part_size BIGINT,
    etag TEXT,
    verified_at DOUBLE PRECISION,
    verdict TEXT,
    CONSTRAINT uploads_pkey PRIMARY KEY (hash, host, location),
    CONSTRAINT uploads_hash_fkey FOREIGN KEY (hash) REFERENCES files (hash),
    CONSTRAINT uploads_status_known CHECK (status IN ('stored', 'queued', 'failed', 'removing')),
    CONSTRAINT uploads_attempts_positive CHECK (attempts >= 0),
    CONSTRAINT uploads_checksum_whole CHECK ((checksum_kind IS NULL) = (checksum_value IS NULL)),
    CONSTRAINT uploads_part_size_positive CHECK (checksum_part_size > 0)
);

-- What still has to be done, in the order in which it is read: all of it, and by host.
CREATE INDEX uploads_waiting ON uploads (hash, host, location)
    WHERE status IN ('queued', 'removing');
CREATE INDEX uploads_waiting_by_host ON uploads (host, hash, location)
    WHERE status IN ('queued', 'removing');

-- Payload bytes from hosts (incoming) and to hosts (outgoing) per UTC month, like '2026-01'.
CREATE TABLE transfer_meter (
    month TEXT NOT NULL,
    incoming BIGINT NOT NULL,
    outgoing BIGINT NOT NULL,
    CONSTRAINT transfer_meter_pkey PRIMARY KEY (month),
    CONSTRAINT transfer_meter_month_form CHECK (month ~ '^[0-9]{4}-[01][0-9]$'),
    CONSTRAINT transfer_meter_positive CHECK (incoming >= 0 AND outgoing >= 0)
);

-- The revision of this schema.
CREATE TABLE cloudmanager_schema (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT cloudmanager_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO cloudmanager_schema (version_num) VALUES ('0001');
