# Makes Tcl's commands on files see the databases of the default VFS beside the files on disk, in every interpreter of
# testfixture, so that SQLite's tests run as they are. Sourced by proof_tcl.c.
#
# A path that is on disk means the file on disk, but for the stubs that proof_vfs.c makes. Journals can be looked at and deleted while their connection has them; one that
# a test writes itself goes to the disk, where pagewire never looks: it has no hot journals.

# With PROOF_STEPS=PATH the file of tests at that path is run command by command, as it is, those within its loops and conditions too: an
# error outside of a case ends only its command, is told in the log and counted, and the rest of the file runs.

if {[info commands proof_file] eq "" && [info commands vfsfile] ne ""} {

foreach c {file open close glob hexio_read hexio_write md5file} {
  if {[info commands $c] ne ""} { rename $c proof_$c }
}
namespace eval ::proof {
  variable n 0
  variable pending
  array set pending {}
  # A database is as long as its header says, where a test may have put billions of pages: of one with more bytes than this [open]
  # shows only so many, and what is changed among them is written, in pieces that lie within a page.
  variable most [expr {1 << 24}]
  variable piece 512
}

# With PROOF_STUBS=1 an empty file stands at the path of a database that was created: what is asked of its content is asked of the database.
proc ::proof::is_stub {path} {
  expr {[info exists ::env(PROOF_STUBS)] && $::env(PROOF_STUBS) eq "1" && [proof_file isfile $path] && [proof_file size $path] == 0}
}

# Whether nothing on disk stands in a database's place.
proc ::proof::is_free {path} { expr {![proof_file exists $path] || [is_stub $path]} }

proc ::proof::is_database {path} { expr {[is_free $path] && [vfsfile exists $path]} }

# Whether a file that a test makes by itself is meant to be opened as a database.
proc ::proof::will_be_database {path} {
  set tail [proof_file tail $path]
  expr {[regexp {\.(db|db2|mdb|sqlite|test)[0-9x]*$} $tail] && [is_free $path]
        && ![proof_file exists [proof_file join $path .]]}
}

proc ::proof::scratch {} {
  variable n
  return [proof_file join [expr {[info exists ::env(PROOF_TMP)] ? $::env(PROOF_TMP) : "/tmp"}] proof.[pid].[incr n]]
}

proc ::proof::content_of_disk {path} {
  set f [proof_open $path rb]
  set bytes [read $f]
  proof_close $f
  return $bytes
}

# As with a file, something that is not there is no error; anything else is told in the log. A database is deleted when no session
# has it open, and the end of one whose goodbye was lost is noticed after the time to live of its lease.
proc ::proof::delete {path} {
  for {set i 0} {$i < 100} {incr i} {
    set rc [vfsfile delete $path]
    if {$rc == 0 || $rc == 5898} return
    sqlite3 ::proof::memory :memory:
    set why [::proof::memory onecolumn {SELECT pagewire_last_error()}]
    ::proof::memory close
    if {![string match {*is open in * session*} $why]} break
    after 100
  }
  puts "proof: deleting $path: error $rc: $why"
}

proc ::proof::content {path} {
  if {[is_database $path]} { return [vfsfile read $path] }
  return [content_of_disk $path]
}

proc ::proof::put {path bytes} {
  if {[is_free $path] && [string match *.db* [proof_file tail $path]] && ![regexp -- {-(journal|wal|shm)$} $path]} {
    vfsfile put $path $bytes
  } else {
    set f [proof_open $path wb]
    puts -nonewline $f $bytes
    proof_close $f
  }
}

# Writes what differs between the beginning of a database that was shown and what it became.
proc ::proof::put_changes {path before after} {
  variable piece
  if {[string length $before] != [string length $after]} { error "\"$path\" is too long for what is done to it" }
  for {set at 0} {$at < [string length $after]} {incr at $piece} {
    set bytes [string range $after $at [expr {$at + $piece - 1}]]
    if {$bytes ne [string range $before $at [expr {$at + $piece - 1}]]} { vfsfile write $path $at $bytes }
  }
}

proc file {sub args} {
  switch -- $sub {
    exist - exists - isfile - readable - writable {
      if {[llength $args] == 1} {
        set path [lindex $args 0]
        # A stub has permissions of its own.
        return [expr {[proof_file exists $path] ? [proof_file $sub $path] : [::proof::is_database $path]}]
      }
    }
    size {
      set path [lindex $args 0]
      if {[::proof::is_database $path]} { return [vfsfile size $path] }
    }
    delete {
      foreach path $args {
        if {$path ne "-force" && $path ne "--" && ![proof_file exists $path]} { ::proof::delete $path }
      }
    }
    copy - rename {
      set rest $args
      set force 0
      while {[string match -* [lindex $rest 0]]} {
        if {[lindex $rest 0] eq "-force"} { set force 1 }
        set rest [lrange $rest 1 end]
      }
      if {[llength $rest] == 2} {
        lassign $rest from to
        if {[proof_file isdirectory $to]} { set to [proof_file join $to [proof_file tail $from]] }
        if {[::proof::is_database $from] || [::proof::is_database $to] || [::proof::will_be_database $to]} {
          if {!$force && [file exists $to]} { error "error copying \"$from\" to \"$to\": file already exists" }
          if {![file exists $from]} { error "error copying \"$from\": no such file or directory" }
          ::proof::put $to [::proof::content $from]
          if {$sub eq "rename"} { file delete $from }
          return ""
        }
      }
    }
  }
  uplevel 1 [list proof_file $sub {*}$args]
}

proc open {path args} {
  set writes [regexp {[wa+]|WRONLY|RDWR|CREAT} [lindex $args 0]]
  if {[string index $path 0] ne "|"
      && ([::proof::is_database $path] || ($writes && [::proof::will_be_database $path]))} {
    set scratch [::proof::scratch]
    set f [proof_open $scratch wb]
    set shown ""
    set is_part 0
    if {[::proof::is_database $path]} {
      set is_part [expr {![string match w* [lindex $args 0]] && [vfsfile size $path] > $::proof::most}]
      if {$is_part} {
        set shown [vfsfile read $path 0 $::proof::most]
        puts -nonewline $f $shown
      } elseif {![string match w* [lindex $args 0]]} {
        puts -nonewline $f [vfsfile read $path]
      }
    }
    proof_close $f
    set fd [uplevel 1 [list proof_open $scratch {*}$args]]
    if {$writes} {
      set ::proof::pending($fd) [list $scratch $path $is_part $shown]
    } else {
      proof_file delete $scratch
    }
    return $fd
  }
  uplevel 1 [list proof_open $path {*}$args]
}

proc close {fd args} {
  set answer [uplevel 1 [list proof_close $fd {*}$args]]
  if {[info exists ::proof::pending($fd)]} {
    lassign $::proof::pending($fd) scratch path is_part shown
    unset ::proof::pending($fd)
    set bytes [::proof::content_of_disk $scratch]
    if {$is_part} { ::proof::put_changes $path $shown $bytes } else { vfsfile put $path $bytes }
    proof_file delete $scratch
  }
  return $answer
}

proc glob {args} {
  set found [proof_glob -nocomplain {*}$args]
  if {![regexp -- {-(directory|path|tails|types|join)} $args]} {
    foreach pattern $args {
      if {$pattern eq "-nocomplain" || $pattern eq "--"} continue
      set absolute [proof_file join [pwd] $pattern]
      foreach name [vfsfile names {}] {
        # To Tcl's [string match] a "*" may be several folders.
        if {![string match $absolute $name] || [regexp -all / $absolute] != [regexp -all / $name]} continue
        if {[proof_file pathtype $pattern] eq "relative"} { set name [string range $name [string length [pwd]/] end] }
        if {$name ni $found && [vfsfile exists $name]} { lappend found $name }
      }
    }
  }
  if {![llength $found] && "-nocomplain" ni $args} { error "no files matched glob pattern \"$args\"" }
  return $found
}

proc hexio_read {path offset amount} {
  if {![::proof::is_database $path]} { return [proof_hexio_read $path $offset $amount] }
  binary scan [vfsfile read $path $offset $amount] H* hex
  return [string toupper $hex]
}

proc hexio_write {path offset hex} {
  if {![::proof::is_database $path] && ![::proof::will_be_database $path]} {
    return [proof_hexio_write $path $offset $hex]
  }
  vfsfile write $path $offset [binary format H* $hex]
}

proc md5file {path args} {
  if {![::proof::is_database $path]} { return [proof_md5file $path {*}$args] }
  set scratch [::proof::scratch]
  set f [proof_open $scratch wb]
  puts -nonewline $f [vfsfile read $path]
  proof_close $f
  set sum [proof_md5file $scratch {*}$args]
  proof_file delete $scratch
  return $sum
}

# What runs commands goes on where one of them fails. A word in front takes the place of Tcl's own: the rest of the command is as it was.
set ::proof::words {foreach for while if do_multiclient_test}

# Evaluates a script in the caller, each of its commands by itself.
proc ::proof::steps {script} {
  set command ""
  foreach line [split $script \n] {
    append command $line\n
    if {![info complete $command]} continue
    set first [lindex [regexp -inline {^[\s;]*([a-z_]+)[ \t]} $command] 1]
    if {$first in $::proof::words} {
      set command "::proof::step_$first[string range $command [expr {[string first $first $command]+[string length $first]}] end]"
    }
    set code [catch {uplevel 1 $command} result]
    if {$code == 1} {
      puts "proof: an error outside of a case: [lindex [split $result \n] 0]"
    } elseif {$code != 0} {
      return -code $code $result
    }
    set command ""
  }
  if {[string trim $command] ne ""} { puts "proof: an error outside of a case: an incomplete command" }
}

# COMMAND with the words at these places, which are scripts, run in steps, in the caller of the caller.
proc ::proof::with_steps {command places} {
  foreach place $places { lset command $place [list ::proof::steps [lindex $command $place]] }
  set code [catch {uplevel 2 $command} result]
  return -code $code $result
}
foreach c {foreach while do_multiclient_test} {
  proc ::proof::step_$c {args} [format {
    set code [catch {::proof::with_steps [list ::%1$s {*}$args] [llength $args]} result]
    return -code $code $result
  } $c]
}
proc ::proof::step_for {args} {
  set code [catch {::proof::with_steps [list ::for {*}$args] 4} result]
  return -code $code $result
}
proc ::proof::step_if {args} {
  # Every word that is neither a condition nor one of the words between them.
  set places {}
  set isScript 0
  set place 0
  foreach word $args {
    incr place
    if {$word eq "then"} continue
    if {$word eq "else"} { set isScript 1; continue }
    if {$word eq "elseif"} { set isScript 0; continue }
    if {$isScript} { lappend places $place }
    set isScript 1
  }
  set code [catch {::proof::with_steps [list ::if {*}$args] $places} result]
  return -code $code $result
}

if {[info exists ::env(PROOF_STEPS)]} {
  rename source proof_source
  proc source {args} {
    set path [lindex $args end]
    if {[proof_file normalize $path] ne $::env(PROOF_STEPS)} { return [uplevel 1 [list proof_source {*}$args]] }
    set before [info script]
    info script $path
    set f [proof_open $path]
    set script [read $f]
    proof_close $f
    set code [catch {uplevel 1 [list ::proof::steps $script]} result]
    info script $before
    # A script that returns is at its end.
    return -code [expr {$code == 2 ? 0 : $code}] $result
  }
}
}
