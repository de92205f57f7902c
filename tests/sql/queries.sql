-- Recursive CTEs, window functions, compound selects, collations, errors that leave the connection usable.
-- @open queries
CREATE TABLE edge(a INT, b INT, w REAL, PRIMARY KEY(a, b));
WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n WHERE i < 299) INSERT INTO edge SELECT i, (i * 3 + 1) % 300, i / 4.0 FROM n;
WITH RECURSIVE reach(x, depth) AS (VALUES(0, 0) UNION SELECT b, depth + 1 FROM reach JOIN edge ON a = x WHERE depth < 40) SELECT count(DISTINCT x), max(depth) FROM reach;
SELECT a, sum(w) OVER (ORDER BY a ROWS BETWEEN 2 PRECEDING AND CURRENT ROW), rank() OVER (PARTITION BY a % 5 ORDER BY w DESC) FROM edge WHERE a < 8 ORDER BY a;
SELECT a FROM edge WHERE a < 5 UNION SELECT b FROM edge WHERE b < 5 EXCEPT SELECT 3 INTERSECT SELECT a FROM edge ORDER BY 1;
SELECT no_such_column FROM edge;
SELECT * FROM no_such_table;
SELEC 1;
INSERT INTO edge VALUES(0, 1, 2);
COMMIT;
BEGIN;
BEGIN;
ROLLBACK;
SELECT group_concat(b, ',') FROM (SELECT b FROM edge WHERE a < 10 ORDER BY b);
UPDATE edge SET w = w * 2 FROM (SELECT a AS x FROM edge WHERE a % 50 = 0) WHERE a = x;
SELECT total(w), round(avg(w), 4) FROM edge;
DELETE FROM edge WHERE rowid IN (SELECT rowid FROM edge ORDER BY w DESC LIMIT 10);
SELECT count(*), changes(), total_changes() > 0 FROM edge;
SELECT typeof(1), typeof(1.0), typeof('x'), typeof(x'00'), typeof(NULL), 1e100, -0.5, 9223372036854775807;
SELECT 'umlaut äöü', 'emoji 🐟', length('äöü🐟');
CREATE TABLE empty_one(x);
SELECT count(*), max(x), sum(x), total(x) FROM empty_one;
PRAGMA integrity_check;
