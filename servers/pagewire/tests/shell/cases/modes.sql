create table t(i integer, r real, s text, b blob);
insert into t values(1, 0.1, 'plain', x'0102'), (null, null, null, null);
insert into t values(-9223372036854775808, 1e20, 'it''s "x", é 漢字', x''), (0, -0.0, '', x'c3a9');
insert into t values(7, 1.0/8, 'two
lines	tab', x'41'), (42, 1e999, 'a|b,c;d\e', 'text');
select * from t;
.headers on
select * from t;
.mode list
select * from t;
.mode line
select * from t;
.mode column
select * from t;
.mode table
select * from t;
.mode box
select * from t;
.mode markdown
select * from t;
.mode csv
select * from t;
.mode tabs
select * from t;
.mode html
select * from t;
.mode json
select * from t;
.mode tcl
select * from t;
.mode ascii
select * from t;
.separator , \n
.mode quote
select * from t where i<>-9223372036854775808 or i is null;
.mode insert other
select i, s, b from t;
.mode insert "odd name"
select i, s, b from t;
.headers off
.nullvalue (null)
.mode insert
select i, s, b from t;
.mode list
select * from t;
.mode csv
select * from t;
.mode box
select * from t;
.mode html
select * from t;
.mode line
select * from t;
select 1 where 0;
.mode json
select 1 where 0;
.mode box
select 1 where 0;
