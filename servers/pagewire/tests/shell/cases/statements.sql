-- a comment first
select 1 -- one
; select 2; /* three
in comment; */ select 3;

select 'a;
b';
create table log(x);
create table t(x);
create trigger tr after insert on t begin
  insert into log values(new.x);
  insert into log values(new.x * 2);
end;
insert into t values(21);
select * from log;
   .tables
select
4
;
select 5
/
select 6
go
# a comment of the shell
.print a "b\tc" 'd\te' f\x
;
;;
select [a;b] from (select 1 as "a;b");
select 7; -- trailing
/* only */ -- comments
select 8
