-- What must never leave the process: temporary tables, sorts and DISTINCT larger than the cache, materialised views,
-- statement journals. Twice in one connection, since one temporary file must not be another's.
-- @open temporary
PRAGMA cache_size = 10;
PRAGMA temp.cache_size = 10;
CREATE TABLE t(i INTEGER PRIMARY KEY, k INT, s TEXT);
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 6000) INSERT INTO t SELECT i, i * 7919 % 6007, printf('%0120d', i * 104729 % 15485863) FROM n;
CREATE TEMP TABLE copy AS SELECT * FROM t ORDER BY s;
CREATE INDEX temp.copy_k ON copy(k);
SELECT count(*), sum(k), sum(length(s)) FROM copy;
SELECT count(*) FROM (SELECT DISTINCT s FROM t);
SELECT count(*) FROM (SELECT DISTINCT s FROM copy UNION SELECT s || 'x' FROM t);
SELECT i, k FROM t ORDER BY s LIMIT 5 OFFSET 3000;
SELECT i, k FROM copy ORDER BY s DESC LIMIT 5 OFFSET 3000;
SELECT k % 10, count(*), max(s) FROM t GROUP BY k % 10 ORDER BY 1;
WITH big AS MATERIALIZED (SELECT * FROM t WHERE k > 3000) SELECT count(*), sum(a.k) FROM big a JOIN big b ON a.i = b.k;
BEGIN;
DELETE FROM copy WHERE k % 2;
UPDATE t SET s = 'y' || s WHERE k % 2;
SELECT count(*) FROM copy;
ROLLBACK;
SELECT count(*), sum(length(s)) FROM copy;
SELECT sum(length(s)) FROM t;
CREATE TEMP TRIGGER watch AFTER UPDATE ON main.t BEGIN INSERT INTO copy VALUES(new.i + 100000, new.k, 'seen'); END;
UPDATE t SET k = k + 1 WHERE i <= 10;
SELECT count(*) FROM copy WHERE s = 'seen';
CREATE INDEX t_s ON t(s);
SELECT name, type FROM temp.sqlite_schema ORDER BY name;
DROP TABLE copy;
-- @reopen
SELECT count(*) FROM temp.sqlite_schema;
SELECT count(*), sum(k) FROM t;
PRAGMA integrity_check;
