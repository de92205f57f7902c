.show
.echo on
select 1;
.headers on
select 1 as a,
  2 as b;
.echo off
.changes on
create table t(x);
insert into t values(1),(2),(3);
delete from t where x > 1;
select count(*) from t;
.changes off
.headers maybe
.headers
.separator
.separator ; END\n
select 1, 2 union all select 3, 4;
.separator |
.nullvalue
.nullvalue <>
select null;
.width a 5
.bail
.echo
.timer
.changes
.show
.limit attached
.limit attached 3
.limit xyz
.timeout 100
.prompt one two
.eqp on
select * from t where x = 1;
.eqp off
explain query plan select * from t where x > 1 union all select x from t order by x;
.explain off
explain query plan select 1;
.explain auto
.mode insert
.show
.cd /nonexistent/place
.system exit 3
.shell echo hello world
.system
