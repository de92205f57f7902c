create table t(a, b);
insert into t values(1, 'one'), (2, null);
.output rows.txt
select * from t;
.print to the file
.output
.system cat rows.txt
.once once.txt
select count(*) from t;
select 'on the screen';
.system cat once.txt
.once |tr a-z A-Z
select 'piped';
.output |sort -r
select * from t;
.output stdout
.output /nonexistent/place/file
.output script.txt
.print select 'from the script';
.print .print nested
.print selec;
.output
.read script.txt
.read "|echo 'select 99;'"
.read /nonexistent
.read
.backup copy.db
.save main other.db
delete from t;
.restore copy.db
select * from t;
.backup
.backup a b c
.restore /nonexistent/x.db
.open copy.db
select count(*) from t;
.open other.db
select count(*) from t;
.mode csv
.output out.csv
select a, b, 'x "y", z' from t;
.output
.import out.csv back
select * from back;
.schema back
