-- Full-text search: insertion, ranking, snippets, prefix queries, deletion, optimize, external content.
-- @open fts5
CREATE VIRTUAL TABLE doc USING fts5(title, body, tokenize = 'porter unicode61', prefix = '2 3');
INSERT INTO doc VALUES('Pages', 'A page is a page wherever it is kept'), ('Leases', 'Who writes holds the lease; leases run out');
WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 400)
  INSERT INTO doc SELECT 'note ' || i, 'word' || (i % 7) || ' common text number ' || i || ' and term' || (i * i % 31) FROM n;
SELECT rowid, title FROM doc WHERE doc MATCH 'lease' ORDER BY rank;
SELECT count(*) FROM doc WHERE doc MATCH 'word3 AND common';
SELECT rowid, snippet(doc, 1, '[', ']', '...', 5) FROM doc WHERE doc MATCH 'kept OR holding' ORDER BY rowid;
SELECT count(*) FROM doc WHERE doc MATCH 'te*';
SELECT rowid, round(bm25(doc), 6) FROM doc WHERE doc MATCH 'term5' ORDER BY rank, rowid LIMIT 5;
DELETE FROM doc WHERE rowid % 3 = 0;
UPDATE doc SET body = 'changed into something else' WHERE rowid = 10;
SELECT rowid FROM doc WHERE doc MATCH '"something else"';
BEGIN;
INSERT INTO doc SELECT title, body FROM doc;
SELECT count(*) FROM doc;
ROLLBACK;
SELECT count(*) FROM doc;
INSERT INTO doc(doc) VALUES('optimize');
INSERT INTO doc(doc) VALUES('integrity-check');
CREATE TABLE mail(id INTEGER PRIMARY KEY, subject TEXT);
CREATE VIRTUAL TABLE mail_fts USING fts5(subject, content = 'mail', content_rowid = 'id');
CREATE TRIGGER mail_ai AFTER INSERT ON mail BEGIN INSERT INTO mail_fts(rowid, subject) VALUES (new.id, new.subject); END;
INSERT INTO mail(subject) VALUES('hello world'), ('goodbye world'), ('hello again');
SELECT rowid, subject FROM mail_fts WHERE mail_fts MATCH 'hello' ORDER BY rowid;
-- @reopen
SELECT count(*) FROM doc WHERE doc MATCH 'common';
DROP TABLE doc;
SELECT name FROM sqlite_schema ORDER BY name;
PRAGMA integrity_check;
