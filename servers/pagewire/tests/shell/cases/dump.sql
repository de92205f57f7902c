create table parent(id integer primary key autoincrement, name text, total as (id * 2));
create table kinds(n, i int, r real, s text, b blob);
insert into kinds values(null, -5, 0.1, 'it''s', x'00ff'), (1, 2, 1e15, 'line
feed', x''), (9223372036854775807, 0, 3.0, 'cr' || char(13) || 'lf' || char(10) || '\n \012', null);
insert into kinds(r) values(1e999), (-1e999), (123456789.125), (1e20), (1.5e-7), (-0.0);
insert into parent(name) values('é'), ('漢字'), ('');
create table "odd name"("a b", "select");
insert into "odd name" values(1, 2);
create table empty(x);
create table keyed(k text primary key, v) without rowid;
insert into keyed values('b', 2), ('a', 1);
create view v as select id, name from parent;
create virtual table words using fts5(body);
insert into words values('hello world'), ('other');
create virtual table boxes using rtree(id, x0, x1);
insert into boxes values(1, 0.5, 2.5);
create trigger tr after delete on parent begin select 1; end;
create index i on kinds(i);
analyze;
.dump parent
.dump kinds keyed
.dump nothing
.dump --data-only keyed
.dump --newlines kinds
.dump --preserve-rowids keyed
.dump --preserve-rowids "odd name"
.dump --preserve-rowids parent
.dump --nosuch
.dump wor%
