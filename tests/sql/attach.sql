-- ATTACH: reads and writes over several databases, one commit, one rollback, temporary tables beside them, DETACH.
-- @open attach_main
ATTACH '{attach_second}' AS second;
ATTACH '{attach_third}' AS third;
CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
CREATE TABLE second.t(i INTEGER PRIMARY KEY, v TEXT);
CREATE TABLE third.other(a, b);
BEGIN;
INSERT INTO main.t VALUES(1, 'in main'), (2, 'in main');
INSERT INTO second.t VALUES(1, 'in second');
INSERT INTO third.other VALUES(1, 2);
COMMIT;
SELECT 'main', * FROM main.t UNION ALL SELECT 'second', * FROM second.t ORDER BY 1, 2;
BEGIN;
UPDATE main.t SET v = 'lost';
UPDATE second.t SET v = 'lost';
DELETE FROM third.other;
ROLLBACK;
SELECT m.v, s.v, o.b FROM main.t m JOIN second.t s USING(i) JOIN third.other o ON o.a = m.i;
PRAGMA cache_size = 10;
PRAGMA second.cache_size = 10;
BEGIN;
WITH RECURSIVE n(i) AS (VALUES(10) UNION ALL SELECT i + 1 FROM n WHERE i < 900) INSERT INTO main.t SELECT i, printf('%0150d', i) FROM n;
INSERT INTO second.t SELECT i, 'second ' || v FROM main.t WHERE i > 5;
SAVEPOINT half;
DELETE FROM main.t;
DELETE FROM second.t;
ROLLBACK TO half;
COMMIT;
SELECT (SELECT count(*) FROM main.t), (SELECT count(*) FROM second.t), (SELECT sum(length(v)) FROM second.t);
CREATE TEMP TABLE scratch AS SELECT i FROM main.t WHERE i % 100 = 0;
INSERT INTO third.other SELECT i, i * i FROM scratch;
SELECT * FROM third.other ORDER BY a;
DETACH third;
SELECT count(*) FROM third.other;
PRAGMA second.integrity_check;
ATTACH ':memory:' AS m;
CREATE TABLE m.x AS SELECT * FROM second.t WHERE i < 20;
SELECT count(*) FROM m.x;
DETACH second;
-- @open attach_second
SELECT count(*), min(i), max(i) FROM t;
-- @open attach_third
SELECT count(*) FROM other;
-- @open attach_main
SELECT count(*), min(i), max(i) FROM t;
PRAGMA integrity_check;
