-- R*Tree and JSON.
-- @open rtree_json
CREATE VIRTUAL TABLE box USING rtree(id, x0, x1, y0, y1, +label);
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
  INSERT INTO box SELECT i, i % 37, i % 37 + 2, i % 53, i % 53 + 3, 'box ' || i FROM n;
SELECT count(*) FROM box WHERE x0 >= 10 AND x1 <= 15 AND y0 >= 10 AND y1 <= 20;
SELECT id, label FROM box WHERE x0 >= 10 AND x1 <= 13 AND y0 >= 10 AND y1 <= 14 ORDER BY id;
DELETE FROM box WHERE id % 2 = 0;
UPDATE box SET x0 = 500, x1 = 501 WHERE id = 777;
SELECT id, label FROM box WHERE x0 > 400;
SELECT rtreecheck('box');
CREATE TABLE j(id INTEGER PRIMARY KEY, doc TEXT CHECK(json_valid(doc)));
INSERT INTO j(doc) VALUES('{"a":1,"b":[1,2,{"c":"x"}]}'), ('[true,null,1.5]');
INSERT INTO j(doc) VALUES('{broken');
SELECT json_extract(doc, '$.b[2].c'), doc ->> '$[2]', json_type(doc) FROM j ORDER BY id;
UPDATE j SET doc = json_set(doc, '$.a', json('{"deep":[1]}'), '$.new', 'v') WHERE id = 1;
SELECT doc FROM j WHERE id = 1;
SELECT key, atom, fullkey FROM j, json_tree(j.doc) WHERE j.id = 1 AND atom IS NOT NULL ORDER BY fullkey;
SELECT json_group_array(id), json_group_object('k' || id, id) FROM j;
CREATE INDEX j_a ON j(json_extract(doc, '$.new'));
SELECT id FROM j WHERE json_extract(doc, '$.new') = 'v';
-- @reopen
SELECT count(*) FROM box;
PRAGMA integrity_check;
