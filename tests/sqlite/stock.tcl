# tclsh stock.tcl FILE.test ARGUMENT...
# A file of SQLite's suite in a plain tclsh, with the distribution's own Tcl binding and library of SQLite: pagewire is loaded as the
# extension that it is for users. PROOF_VFS=unix leaves it away.
#
# PROOF_STOCK is a folder with proofstock.so (the commands that tester.tcl needs, see stock.c) and libpagewire.so.
set ::proof_stock $::env(PROOF_STOCK)
package require sqlite3
load [file join $::proof_stock proofstock.so] Proofstock
if {![info exists ::env(PROOF_VFS)] || $::env(PROOF_VFS) ne "unix"} {
  sqlite3 proof_loader :memory:
  proof_loader enable_load_extension 1
  proof_loader eval {SELECT load_extension($::proof_stock || '/libpagewire.so')}
  proof_loader close
  if {[proof_begin]} { error "pagewire is not registered" }
}
# With the unix VFS only where a file is run command by command.
if {[info exists ::env(PROOF_PRELUDE)]} { source $::env(PROOF_PRELUDE) }

# Each file of a suite in an interpreter of its own.
proc load_testfixture_extensions {child} {
  interp eval $child {package require sqlite3}
  load [file join $::proof_stock proofstock.so] Proofstock $child
  if {[info exists ::env(PROOF_PRELUDE)]} { interp eval $child [list source $::env(PROOF_PRELUDE)] }
}

set argv0 [lindex $argv 0]
set argv [lrange $argv 1 end]
set argc [llength $argv]
# As testfixture does where a script ends in an error.
if {[catch {source $argv0}]} {
  puts stderr $::errorInfo
  exit 1
}
