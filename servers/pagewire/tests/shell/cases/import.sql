.output in.csv
.print "a,b,c"
.print "1,\"x \"\"y\"\", z\",3"
.print "4,5"
.print "6,7,8,9"
.print ""
.print "\"two\nlines\",é,"
.print "\"open \"quote,1,2"
.output
.import --csv -v in.csv t
select rowid, * from t;
.schema t
create table typed(i integer, r real, s text);
.import --csv --skip 1 in.csv typed
select *, typeof(i), typeof(r), typeof(s) from typed;
.output list.txt
.print "x|y"
.print "1|2"
.print "3|4"
.output
.import list.txt piped
select * from piped;
.separator ;
.import "|printf 'k;v\n1;2\n'" piped2
select * from piped2;
.import --schema temp --csv in.csv scratch
.tables
create table narrow(k unique);
.import "|printf 'a\nb\na\n'" narrow
select * from narrow;
.output dup.csv
.print "a,b,A,,b"
.print "1,2,3,4,5"
.output
.import --csv dup.csv dup
.schema dup
.import
.import in.csv
.import --nosuch in.csv x
.import in.csv x y
.import /nonexistent t
.separator ab
.import in.csv t
.separator ,
.output ascii.txt
.mode ascii
select 'a', 'b' union all select 'c', 'd';
.output
.mode list
create table two(x, y);
.import --ascii ascii.txt two
select * from two;
.mode csv
.import in.csv again
.mode list
select count(*) from again;
