-- Every page size: inserts, overflow chains, deletes, index, rollback, reopen.
-- @each page_size 512 1024 2048 4096 8192 16384 32768 65536
-- @open size_{page_size}
PRAGMA page_size = {page_size};
CREATE TABLE t(i INTEGER PRIMARY KEY, s TEXT, b BLOB);
CREATE INDEX t_s ON t(s);
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 300) INSERT INTO t SELECT i, printf('%0*d', 20 + i % 50, i), zeroblob(i * 17 % 3000) FROM n;
INSERT INTO t VALUES(1000, 'large', zeroblob(200000));
UPDATE t SET b = CAST(replace(hex(zeroblob(35000)), '00', 'pagewire') AS BLOB) WHERE i = 1000;
SELECT length(b), hex(substr(b, 250001, 8)) FROM t WHERE i = 1000;
PRAGMA page_size;
PRAGMA page_count;
SELECT count(*), sum(length(s)), sum(length(b)) FROM t;
DELETE FROM t WHERE i % 3 = 0;
BEGIN;
DELETE FROM t;
DROP INDEX t_s;
ROLLBACK;
SELECT count(*), sum(length(s)), sum(length(b)) FROM t;
-- @reopen
SELECT count(*), sum(length(s)), sum(length(b)) FROM t INDEXED BY t_s WHERE s > '0';
PRAGMA integrity_check;
