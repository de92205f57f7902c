.parameter
.parameter list
.parameter set $x 3
.parameter set @y 'abc d'
.parameter set :z "'quoted'"
.parameter set ?5 1.5
.parameter list
select $x, @y, :z, ?5, $unset;
.parameter unset :z
.parameter list
select :z is null;
.parameter set $x "3 + 4"
select $x;
.parameter set $x 'not sql at all'
select $x;
.parameter clear
.parameter list
.parameter init
.parameter list
.parameter nosuch
select $x is null;
