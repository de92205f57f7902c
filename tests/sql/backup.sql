-- The backup API in both directions, over an existing database too, between page sizes, and VACUUM INTO.
-- @open backup_from
CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 1200) INSERT INTO t SELECT i, printf('%0100d', i * 31) FROM n;
-- @backup backup_to
UPDATE t SET v = 'later' WHERE i = 1;
-- @open backup_to
SELECT count(*), sum(i), (SELECT substr(v, 95) FROM t WHERE i = 1) FROM t;
INSERT INTO t VALUES(5000, 'only in the copy');
PRAGMA integrity_check;
-- @open backup_other
PRAGMA page_size = 1024;
CREATE TABLE unrelated(x);
INSERT INTO unrelated VALUES(1), (2);
-- @open backup_from
-- @backup backup_other
-- @open backup_other
SELECT count(*) FROM unrelated;
SELECT count(*), sum(i) FROM t;
PRAGMA integrity_check;
-- @restore backup_to
SELECT count(*), max(i) FROM t;
PRAGMA integrity_check;
