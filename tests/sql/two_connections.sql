-- Two connections of one process to one database, and two databases in one process, each with its own schema.
-- @open shared
CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
INSERT INTO t VALUES(1, 'by the first');
-- @connection 1
-- @open shared
SELECT * FROM t;
INSERT INTO t VALUES(2, 'by the second');
CREATE TABLE later(x);
-- @connection 0
SELECT * FROM t;
INSERT INTO later VALUES('the first sees the new schema');
-- @connection 1
SELECT * FROM later;
ALTER TABLE later RENAME COLUMN x TO y;
-- @connection 0
SELECT y FROM later;
-- @connection 2
-- @open not_shared
CREATE TABLE completely(different, schema_);
INSERT INTO completely VALUES(1, 2);
SELECT name FROM sqlite_schema;
-- @connection 0
SELECT name FROM sqlite_schema ORDER BY name;
BEGIN;
UPDATE t SET v = 'held' WHERE i = 1;
-- @connection 2
INSERT INTO completely VALUES(3, 4);
SELECT count(*) FROM completely;
-- @connection 0
COMMIT;
-- @connection 1
SELECT * FROM t ORDER BY i;
PRAGMA integrity_check;
-- @connection 2
PRAGMA integrity_check;
