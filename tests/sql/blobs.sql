-- Large values in overflow chains, incremental blob I/O, zeroblob, truncation of the file.
-- @open blobs
CREATE TABLE b(id INTEGER PRIMARY KEY, v BLOB);
INSERT INTO b VALUES(1, zeroblob(1000000)), (2, x'0102030405');
SELECT id, length(v) FROM b ORDER BY id;
-- @blob_write b v 1 0 48656c6c6f
-- @blob_write b v 1 4094 ffffffffffff
-- @blob_write b v 1 999995 576f726c64
-- @blob_read b v 1 4090 16
-- @blob_read b v 1 999990 10
-- @blob_write b v 2 1 aabb
SELECT hex(v) FROM b WHERE id = 2;
SELECT hex(substr(v, 1, 8)), hex(substr(v, 4093, 10)) FROM b WHERE id = 1;
BEGIN;
-- @blob_write b v 1 500000 deadbeef
SELECT hex(substr(v, 500001, 4)) FROM b WHERE id = 1;
ROLLBACK;
SELECT hex(substr(v, 500001, 4)) FROM b WHERE id = 1;
UPDATE b SET v = v || x'ee' WHERE id = 1;
SELECT length(v), hex(substr(v, -2)) FROM b WHERE id = 1;
INSERT INTO b SELECT id + 10, v FROM b;
DELETE FROM b WHERE id = 1;
SELECT id, length(v) FROM b ORDER BY id;
-- @reopen
SELECT id, length(v), hex(substr(v, 1, 5)) FROM b ORDER BY id;
PRAGMA integrity_check;
