select 1;
selec 1;
select * from nothing_here;

select 1,
  2 from
  where;
select 'abc' || , 'def';
select 'a long line of text that goes on and on for much more than fifty bytes', 1 +, 2 from t where x is not null and y;
create table t(a unique, b check (b > 0));
insert into t values(1, 1);
insert into t values(1, 2);
insert into t values(2, 0);
select abs(-9223372036854775808);
select 1; select 2 frm; select 3;
insert into t values(3, 3); insert into t values(3, 3); insert into t values(4, 4);
select count(*) from t;
.nosuch
.foo bar
select x'abc';
select "unclosed;
