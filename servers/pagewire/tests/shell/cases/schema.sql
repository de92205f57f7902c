create table parent(id integer primary key autoincrement, name text not null default 'x''y', total as (id * 2));
create table "odd name"("a b", 'select', [c d] references parent(id));
CREATE TABLE wide(
  one int, -- first
  two text check (two <> '('),
  primary key (one, two)
) WITHOUT ROWID;
create index "odd index" on "odd name"("a b");
create unique index u on parent(name collate nocase) where id > 3;
create view v as select id, name from parent;
create view "odd view"("x y") as select 1;
create virtual table words using fts5(body);
create trigger tr after delete on parent begin select 1; end;
.tables
.tables par%
.tables nothing
.indexes
.indexes odd%
.indices
.schema
.schema parent
.schema v
.schema nothing
.schema --indent parent
.schema --nosys
.schema sqlite_schema
.schema PAR%
.fullschema
attach ':memory:' as aux1;
create table aux1.inside(x);
create view aux1.seen as select x from inside;
create temp table scratch(q);
.tables
.schema inside
.schema aux1.seen
.schema scratch
.databases
begin;
insert into parent(name) values('n');
.databases
commit;
.databases
.indexes a b
.schema a b
