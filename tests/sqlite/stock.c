/*
** The commands that SQLite's tester.tcl needs of testfixture, for a plain tclsh with Debian's own Tcl binding and library of SQLite, in
** which nothing is patched and nothing is counted. What is here is made of SQLite's public interface; where testfixture arms a fault or
** a check of its test build, that is left away. All other commands of testfixture are missing on purpose: a file that needs them is
** counted as such.
*/
#include "sqlite3.h"
#include "tcl.h"
#include <stdio.h>
#include <string.h>

int proof_tcl_init(Tcl_Interp*);
int proof_begin(void);
/* SQLite's own, which need no more either: the array sqlite_options, and the command and SQL function of a checksum. */
int Sqliteconfig_Init(Tcl_Interp*);
int Md5_Init(Tcl_Interp*);
int Md5_Register(sqlite3*, char**, const void*);

static int fails(Tcl_Interp *ip, Tcl_Obj *const*ov, const char *zArguments){
  Tcl_WrongNumArgs(ip, 1, ov, zArguments);
  return TCL_ERROR;
}
static int answers(Tcl_Interp *ip, sqlite3_int64 value){
  Tcl_SetObjResult(ip, Tcl_NewWideIntObj(value));
  return TCL_OK;
}
/* The connection behind a command made by [sqlite3]: the first member of the binding's structure. */
static sqlite3 *connection(Tcl_Interp *ip, Tcl_Obj *pName){
  Tcl_CmdInfo info;
  if( Tcl_GetCommandInfo(ip, Tcl_GetString(pName), &info)==0 ) return 0;
  return *(sqlite3**)info.objClientData;
}

static int nothing(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused; (void)ip; (void)oc; (void)ov;
  return TCL_OK;
}
/* Debian's library has no batch-atomic writes, and no sanitizer. */
static int none(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused; (void)oc; (void)ov;
  return answers(ip, 0);
}
static int one(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused; (void)oc; (void)ov;
  return answers(ip, 1);
}
static int pendingByte(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  int place;
  (void)unused;
  if( oc!=2 ) return fails(ip, ov, "PENDING-BYTE");
  if( Tcl_GetIntFromObj(ip, ov[1], &place) ) return TCL_ERROR;
  Tcl_SetVar2Ex(ip, "sqlite_pending_byte", 0, Tcl_NewIntObj(place), TCL_GLOBAL_ONLY);
  return answers(ip, sqlite3_test_control(SQLITE_TESTCTRL_PENDING_BYTE, place));
}
static int connectionPointer(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  sqlite3 *db;
  (void)unused;
  if( oc!=2 || (db = connection(ip, ov[1]))==0 ) return fails(ip, ov, "DB");
  Tcl_SetObjResult(ip, Tcl_ObjPrintf("%p", (void*)db));
  return TCL_OK;
}
static int dbConfig(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  static const struct { const char *zName; int op; } aSetting[] = {
    {"SQLITE_DBCONFIG_ENABLE_FKEY", SQLITE_DBCONFIG_ENABLE_FKEY},
    {"SQLITE_DBCONFIG_ENABLE_TRIGGER", SQLITE_DBCONFIG_ENABLE_TRIGGER},
    {"SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER", SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER},
    {"SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION", SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION},
    {"SQLITE_DBCONFIG_ENABLE_QPSG", SQLITE_DBCONFIG_ENABLE_QPSG},
    {"SQLITE_DBCONFIG_TRIGGER_EQP", SQLITE_DBCONFIG_TRIGGER_EQP},
    {"SQLITE_DBCONFIG_RESET_DB", SQLITE_DBCONFIG_RESET_DATABASE},
    {"SQLITE_DBCONFIG_DEFENSIVE", SQLITE_DBCONFIG_DEFENSIVE},
    {"SQLITE_DBCONFIG_WRITABLE_SCHEMA", SQLITE_DBCONFIG_WRITABLE_SCHEMA},
    {"SQLITE_DBCONFIG_LEGACY_ALTER_TABLE", SQLITE_DBCONFIG_LEGACY_ALTER_TABLE},
    {"SQLITE_DBCONFIG_DQS_DML", SQLITE_DBCONFIG_DQS_DML},
    {"SQLITE_DBCONFIG_DQS_DDL", SQLITE_DBCONFIG_DQS_DDL},
    {"SQLITE_DBCONFIG_LEGACY_FILE_FORMAT", SQLITE_DBCONFIG_LEGACY_FILE_FORMAT},
  };
  sqlite3 *db;
  size_t i, count = sizeof(aSetting)/sizeof(aSetting[0]);
  int value = -1;
  (void)unused;
  if( oc<3 || oc>4 || (db = connection(ip, ov[1]))==0 ) return fails(ip, ov, "DB SETTING ?VALUE?");
  if( oc==4 && Tcl_GetIntFromObj(ip, ov[3], &value) ) return TCL_ERROR;
  /* The tests leave out any part of the beginning of a name. */
  for(i=0; i<count; i++){
    const char *zFound = strstr(aSetting[i].zName, Tcl_GetString(ov[2]));
    if( zFound && strcmp(zFound, Tcl_GetString(ov[2]))==0 ) break;
  }
  if( i==count ){
    Tcl_SetObjResult(ip, Tcl_ObjPrintf("unknown setting \"%s\"", Tcl_GetString(ov[2])));
    return TCL_ERROR;
  }
  sqlite3_db_config(db, aSetting[i].op, value, &value);
  return answers(ip, value);
}
static int extendedResultCodes(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  sqlite3 *db;
  int on;
  (void)unused;
  if( oc!=3 || (db = connection(ip, ov[1]))==0 ) return fails(ip, ov, "DB ON");
  if( Tcl_GetBooleanFromObj(ip, ov[2], &on) ) return TCL_ERROR;
  sqlite3_extended_result_codes(db, on);
  return TCL_OK;
}
/* Statements, and connections by their addresses, as [sqlite3_connection_pointer] gives them. */
static void *address(Tcl_Obj *pText){
  void *p = 0;
  return sscanf(Tcl_GetString(pText), "%p", &p)==1 ? p : 0;
}
static int nextStatement(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  sqlite3 *db;
  sqlite3_stmt *p;
  (void)unused;
  if( oc!=3 || ((db = connection(ip, ov[1]))==0 && (db = address(ov[1]))==0) ) return fails(ip, ov, "DB STMT");
  p = sqlite3_next_stmt(db, (sqlite3_stmt*)address(ov[2]));
  if( p ) Tcl_SetObjResult(ip, Tcl_ObjPrintf("%p", (void*)p));
  return TCL_OK;
}
static int expandedSql(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  sqlite3_stmt *p;
  char *z;
  (void)unused;
  if( oc!=2 || (p = (sqlite3_stmt*)address(ov[1]))==0 ) return fails(ip, ov, "STMT");
  z = sqlite3_expanded_sql(p);
  Tcl_SetObjResult(ip, Tcl_NewStringObj(z ? z : "", -1));
  sqlite3_free(z);
  return TCL_OK;
}
static int testControl(ClientData op, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)ip; (void)oc; (void)ov;
  sqlite3_test_control((int)(size_t)op);
  return TCL_OK;
}
typedef sqlite3_int64 Limit(sqlite3_int64);
static int limit(Limit *xLimit, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  Tcl_WideInt n = -1;
  if( oc>2 ) return fails(ip, ov, "?N?");
  if( oc==2 && Tcl_GetWideIntFromObj(ip, ov[1], &n) ) return TCL_ERROR;
  return answers(ip, xLimit(n));
}
static int softLimit(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused;
  return limit(sqlite3_soft_heap_limit64, ip, oc, ov);
}
static int hardLimit(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused;
  return limit(sqlite3_hard_heap_limit64, ip, oc, ov);
}
static int memoryUsed(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused; (void)oc; (void)ov;
  return answers(ip, sqlite3_memory_used());
}
static int memoryHighwater(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused; (void)ov;
  return answers(ip, sqlite3_memory_highwater(oc>1));
}
static int sharedCache(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  static int isOn = 0;
  int was = isOn;
  (void)unused;
  if( oc>1 ){
    if( Tcl_GetBooleanFromObj(ip, ov[1], &isOn) ) return TCL_ERROR;
    sqlite3_enable_shared_cache(isOn);
  }
  return answers(ip, was);
}
static int autocommit(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  sqlite3 *db;
  (void)unused;
  if( oc!=2 || (db = connection(ip, ov[1]))==0 ) return fails(ip, ov, "DB");
  return answers(ip, sqlite3_get_autocommit(db));
}
/* What finalize_testing prints and requires: no more than what is in use, which pagewire is not asked about. */
static int status(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  Tcl_Obj *pList = Tcl_NewObj();
  int i;
  (void)unused; (void)oc; (void)ov;
  for(i=0; i<3; i++) Tcl_ListObjAppendElement(ip, pList, Tcl_NewIntObj(0));
  Tcl_SetObjResult(ip, pList);
  return TCL_OK;
}
static int resetAutoExtension(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused; (void)ip; (void)oc; (void)ov;
  sqlite3_reset_auto_extension();
  return TCL_OK;
}
static int begin(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  (void)unused; (void)oc; (void)ov;
  return answers(ip, proof_begin());
}

int Proofstock_Init(Tcl_Interp *ip){
  static const struct { const char *zName; Tcl_ObjCmdProc *xCommand; size_t data; } aCommand[] = {
    {"atomic_batch_write", none},
    {"clang_sanitize_address", none},
    {"reset_prng_state", testControl, SQLITE_TESTCTRL_PRNG_RESET},
    {"restore_prng_state", testControl, SQLITE_TESTCTRL_PRNG_RESTORE},
    {"save_prng_state", testControl, SQLITE_TESTCTRL_PRNG_SAVE},
    {"sqlite3_db_config", dbConfig},
    {"sqlite3_expanded_sql", expandedSql},
    {"sqlite3_extended_result_codes", extendedResultCodes},
    {"sqlite3_next_stmt", nextStatement},
    {"sqlite3_soft_heap_limit", softLimit},
    {"autoinstall_test_functions", nothing},
    {"database_may_be_corrupt", nothing},
    {"database_never_corrupt", nothing},
    {"extra_schema_checks", nothing},
    {"install_malloc_faultsim", nothing},
    {"proof_begin", begin},
    {"sqlite3_config_memstatus", nothing},
    {"sqlite3_connection_pointer", connectionPointer},
    {"sqlite3_enable_shared_cache", sharedCache},
    {"sqlite3_get_autocommit", autocommit},
    {"sqlite3_hard_heap_limit64", hardLimit},
    {"sqlite3_initialize", nothing},
    {"sqlite3_memdebug_settitle", nothing},
    {"sqlite3_memory_highwater", memoryHighwater},
    {"sqlite3_memory_used", memoryUsed},
    {"sqlite3_reset_auto_extension", resetAutoExtension},
    {"sqlite3_shutdown", nothing},
    {"sqlite3_soft_heap_limit64", softLimit},
    {"sqlite3_status", status},
    {"sqlite3_test_control_pending_byte", pendingByte},
    {"vfs_unlink_test", nothing},
    {"working_64bit_int", one},
  };
  size_t i;
  for(i=0; i<sizeof(aCommand)/sizeof(aCommand[0]); i++){
    Tcl_CreateObjCommand(ip, aCommand[i].zName, aCommand[i].xCommand, (ClientData)aCommand[i].data, 0);
  }
  Tcl_SetVar(ip, "sqlite_open_file_count", "0", TCL_GLOBAL_ONLY);
  Tcl_SetVar(ip, "bitmask_size", "64", TCL_GLOBAL_ONLY);
  if( Sqliteconfig_Init(ip) || Md5_Init(ip) ) return TCL_ERROR;
  sqlite3_auto_extension((void(*)(void))Md5_Register);
  return proof_tcl_init(ip);
}
