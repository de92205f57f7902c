/*
** Makes pagewire the default VFS of a program that links SQLite statically: compile this file together with SQLite, with
** -DSQLITE_EXTRA_INIT=pagewire_static_init, and link libpagewire.a.
*/
#include "pagewire.h"
#include "sqlite3.h"

int pagewire_static_init(const char *unused){
  static int isDefault = -1;
  sqlite3 *db = 0;
  int rc;
  (void)unused;
  rc = sqlite3_auto_extension((void (*)(void))pagewire_auto_init);
  if( rc!=SQLITE_OK ) return rc;
  /* An automatic extension runs when a connection is opened: open one that needs no VFS. */
  rc = sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE|SQLITE_OPEN_CREATE, 0);
  sqlite3_close(db);
  /* sqlite3_initialize() after sqlite3_shutdown() makes the operating system's VFS the default again. */
  if( isDefault<0 ) isDefault = sqlite3_vfs_find(0)==sqlite3_vfs_find("pagewire");
  if( isDefault ) sqlite3_vfs_register(sqlite3_vfs_find("pagewire"), 1);
  return rc;
}
