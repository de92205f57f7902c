/*
** Pagewire: SQLite on remote pages. Interface of libpagewire.a for programs that link SQLite statically.
**
** The library needs no symbol of SQLite: it works with the table of functions that SQLite hands to an extension. So it is
** made known to SQLite once, as an automatic extension:
**
**     sqlite3_auto_extension((void (*)(void))pagewire_auto_init);
**
** and the first connection that is opened after that (":memory:" will do) registers the VFS "pagewire", as the default one
** unless PAGEWIRE_DEFAULT=0 is in the environment. pagewire_static_init.c does both; compile it into SQLite with
** -DSQLITE_EXTRA_INIT=pagewire_static_init.
*/
#ifndef PAGEWIRE_H
#define PAGEWIRE_H

#ifdef __cplusplus
extern "C" {
#endif

struct sqlite3;
struct sqlite3_api_routines;

/*
** For sqlite3_auto_extension(). Registers the VFS and, with each new connection, the functions and tables of Pagewire.
** Returns SQLITE_OK, or SQLITE_ERROR with a message. Harmless without a server and when called again.
*/
int pagewire_auto_init(struct sqlite3 *db, char **pzErrMsg, const struct sqlite3_api_routines *pApi);

/*
** Entry point of the loadable extension; returns SQLITE_OK_LOAD_PERMANENTLY.
*/
int sqlite3_pagewire_init(struct sqlite3 *db, char **pzErrMsg, const struct sqlite3_api_routines *pApi);

/*
** Defined by pagewire_static_init.c, for -DSQLITE_EXTRA_INIT=pagewire_static_init.
*/
int pagewire_static_init(const char *unused);

#ifdef __cplusplus
}
#endif

#endif
