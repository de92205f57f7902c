# Makes Tcl's commands on files see the databases of the default VFS beside the files on disk, in every interpreter of
# testfixture, so that SQLite's tests run as they are. Sourced by proof_tcl.c.
#
# A path that is on disk means the file on disk. Journals can be looked at and deleted while their connection has them; one that
# a test writes itself goes to the disk, where pagewire never looks: it has no hot journals.

if {[info commands proof_file] eq "" && [info commands vfsfile] ne ""} {

foreach c {file open close glob hexio_read hexio_write md5file} {
  if {[info commands $c] ne ""} { rename $c proof_$c }
}
namespace eval ::proof { variable n 0; variable pending; array set pending {} }

proc ::proof::is_database {path} { expr {![proof_file exists $path] && [vfsfile exists $path]} }

# Whether a file that a test makes by itself is meant to be opened as a database.
proc ::proof::will_be_database {path} {
  set tail [proof_file tail $path]
  expr {[regexp {\.(db|db2|mdb|sqlite|test)[0-9x]*$} $tail] && ![proof_file exists $path]
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
  if {![proof_file exists $path] && [string match *.db* [proof_file tail $path]] && ![regexp -- {-(journal|wal|shm)$} $path]} {
    vfsfile put $path $bytes
  } else {
    set f [proof_open $path wb]
    puts -nonewline $f $bytes
    proof_close $f
  }
}

proc file {sub args} {
  switch -- $sub {
    exists - isfile - readable - writable {
      if {[llength $args] == 1} {
        return [expr {[proof_file $sub [lindex $args 0]] || [::proof::is_database [lindex $args 0]]}]
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
    if {[::proof::is_database $path]} { puts -nonewline $f [vfsfile read $path] }
    proof_close $f
    set fd [uplevel 1 [list proof_open $scratch {*}$args]]
    if {$writes} { set ::proof::pending($fd) [list $scratch $path] } else { proof_file delete $scratch }
    return $fd
  }
  uplevel 1 [list proof_open $path {*}$args]
}

proc close {fd args} {
  set answer [uplevel 1 [list proof_close $fd {*}$args]]
  if {[info exists ::proof::pending($fd)]} {
    lassign $::proof::pending($fd) scratch path
    unset ::proof::pending($fd)
    vfsfile put $path [::proof::content_of_disk $scratch]
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
        if {![string match $absolute $name]} continue
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
}
