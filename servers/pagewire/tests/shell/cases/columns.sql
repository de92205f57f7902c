.mode column
select 1 as a, 'long name of it' as b, null as c;
.headers off
select 1 as a, 'x' as b;
.headers on
.width 3 -6 0
select 'abcdefgh' as first, 12 as second, 'free' as third;
.show
.width
.mode box
select 'ééé' as "é", 'abc' as "漢字漢字", 'tab	x' as t;
.mode box --wrap 10
select 'the quick brown fox jumps over the lazy dog' as words, 'short' as x union all select 'next', 'row';
.mode box --wrap 10 --wordwrap on
select 'the quick brown fox jumps over the lazy dog' as words, 'short' as x union all select 'next', 'row';
.mode table --wrap 7 --ww
select 'alpha-beta gamma,delta.epsilon' as words, 'short' as x union all select 'next', 'row';
.mode column --wrap 8
select 'the quick brown fox' as words, 'line
two
' as x union all select 'next', 'row';
.mode markdown --wrap 8 --ww
select 'the quick brown fox' as words, 'a
b' as x union all select 'next', 'row';
.mode qbox
select 'it''s' as a, 1.5 as b, x'00ff' as c, null as d, '' as e;
.mode
.mode table --quote
select 'it''s' as a, 1.5 as b, x'00ff' as c, null as d;
.mode column
.mode
select 'this is one line of text that is surely longer than sixty characters are wide, is it not' as x;
.mode --wrap 20
.mode
.nullvalue NIL
select null as n, 'x' as m;
.mode nonsense
.mode box --nonsense
