/*
** Tcl commands of the test build that do to the VFS "proof" what [file], [open], [glob] do to the file system, and the
** sourcing of prelude.tcl, which puts them in the place of those, in every interpreter of testfixture.
**
**     vfsfile exists|size|delete|read PATH ?OFFSET? ?AMOUNT?
**     vfsfile write PATH OFFSET BYTES       vfsfile put PATH BYTES       vfsfile truncate PATH SIZE
**     vfsfile names {}        (of the databases that this process has opened)
**
** A change is one transaction of its own, so it waits for the writer of another process and is refused under one of this.
*/
#include "sqlite3.h"
#include "tcl.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef PROOF_EXTENSION
const char *sqlite3TestInit(Tcl_Interp*);
#endif
const char *proof_journal(const char *zPath);
const char *proof_known(int index);

#define WAIT_ROUNDS 40
#define WAIT_MS 50
/* Of what is read at once. */
#define MAX_READ (1<<30)

typedef struct Opened { sqlite3_file *pFile; const char *zName; int rc; } Opened;

static int isBeside(const char *z){
  size_t n = strlen(z);
  return (n>8 && !strcmp(z+n-8, "-journal")) || (n>4 && !strcmp(z+n-4, "-wal")) || strstr(z, "-mj")!=0;
}

/* As sqlite3_create_filename() makes it, and with the C library's memory, as all here: a test lets sqlite3_malloc() fail, not what reads for it. */
static char *nameOf(const char *z){
  char *a = calloc(1, 4+strlen(z)+8);
  if( a==0 ) abort();
  return strcpy(a+4, z);
}
static void freeName(const char *z){ if( z ) free((char*)z-4); }

static Opened openFile(sqlite3_vfs *pVfs, const char *zPath, int forWriting){
  Opened o = {0, 0, 0};
  char *zFull = calloc(1, pVfs->mxPathname+1);
  /* Never read-only: a store that keeps one version has no such opens. */
  int flags = SQLITE_OPEN_READWRITE|(forWriting ? SQLITE_OPEN_CREATE : 0), flagsOut = 0;
  o.rc = pVfs->xFullPathname(pVfs, zPath, pVfs->mxPathname+1, zFull) & ~SQLITE_OK_SYMLINK;
  if( o.rc==SQLITE_OK ){
    const char *zJournal = isBeside(zFull) ? proof_journal(zFull) : 0;
    if( isBeside(zFull) && zJournal==0 ){
      o.rc = SQLITE_CANTOPEN;
    }else{
      o.pFile = calloc(1, pVfs->szOsFile);
      o.zName = zJournal ? 0 : nameOf(zFull);
      o.rc = pVfs->xOpen(pVfs, zJournal ? zJournal : o.zName, o.pFile,
                         (zJournal ? SQLITE_OPEN_MAIN_JOURNAL : SQLITE_OPEN_MAIN_DB)|flags, &flagsOut);
      if( o.rc ){ free(o.pFile); o.pFile = 0; freeName(o.zName); o.zName = 0; }
    }
  }
  free(zFull);
  return o;
}
static void closeFile(Opened *o){
  if( o->pFile==0 ) return;
  o->pFile->pMethods->xClose(o->pFile);
  free(o->pFile);
  freeName(o->zName);
}
static int lockFor(sqlite3_file *p, int level){
  int i, rc = SQLITE_OK;
  for(i=0; i<WAIT_ROUNDS; i++){
    rc = p->pMethods->xLock(p, SQLITE_LOCK_SHARED);
    if( rc==SQLITE_OK && level>SQLITE_LOCK_SHARED ) rc = p->pMethods->xLock(p, SQLITE_LOCK_RESERVED);
    if( rc==SQLITE_OK && level>SQLITE_LOCK_SHARED ) rc = p->pMethods->xLock(p, SQLITE_LOCK_EXCLUSIVE);
    if( (rc&0xff)!=SQLITE_BUSY ) break;
    p->pMethods->xUnlock(p, SQLITE_LOCK_NONE);
    sqlite3_sleep(WAIT_MS);
  }
  return rc;
}
static int commit(sqlite3_file *p){
  int rc = p->pMethods->xFileControl(p, SQLITE_FCNTL_SYNC, 0);
  if( rc==SQLITE_OK || rc==SQLITE_NOTFOUND ) rc = p->pMethods->xSync(p, SQLITE_SYNC_NORMAL);
  if( rc==SQLITE_OK ){
    p->pMethods->xFileControl(p, SQLITE_FCNTL_COMMIT_PHASETWO, 0);
  }
  return rc;
}
/* In pieces that do not cross a page, whatever its size is; the pages of a new file have the size that its header says. */
static int writeAll(sqlite3_file *p, const unsigned char *a, sqlite3_int64 n, sqlite3_int64 off, int piece){
  int rc = SQLITE_OK;
  while( n>0 && rc==SQLITE_OK ){
    int part = piece - (int)(off % piece);
    if( part>n ) part = (int)n;
    rc = p->pMethods->xWrite(p, a, part, off);
    a += part; n -= part; off += part;
  }
  return rc;
}
static int pageSizeOf(const unsigned char *a, int n){
  int size = n>=100 && memcmp(a, "SQLite format 3", 16)==0 ? a[16]<<8|a[17] : 0;
  if( size==1 ) size = 65536;
  return size>=512 && (size&(size-1))==0 ? size : 512;
}

static int vfsfile(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  static const char *azSub[] = {"exists", "size", "delete", "read", "write", "put", "truncate", "names", 0};
  enum { EXISTS, SIZE, DELETE, READ, WRITE, PUT, TRUNCATE, NAMES } sub;
  /* Not the default one, which may be one of the test's own that counts calls and makes them fail. */
  sqlite3_vfs *pVfs = sqlite3_vfs_find("proof");
  Tcl_WideInt off = 0, amount = -1;
  sqlite3_int64 size = 0;
  const char *zPath;
  Opened o;
  int rc, changes;
  (void)unused;
  if( oc<3 ){ Tcl_WrongNumArgs(ip, 1, ov, "SUBCOMMAND PATH ..."); return TCL_ERROR; }
  if( Tcl_GetIndexFromObj(ip, ov[1], azSub, "subcommand", 0, (int*)&sub) ) return TCL_ERROR;
  zPath = Tcl_GetString(ov[2]);
  changes = sub==WRITE || sub==PUT || sub==TRUNCATE;
  if( pVfs==0 ){
    Tcl_SetObjResult(ip, Tcl_NewIntObj(0));
    return TCL_OK;
  }
  if( sub==DELETE ){
    char *zFull = calloc(1, pVfs->mxPathname+1);
    rc = pVfs->xFullPathname(pVfs, zPath, pVfs->mxPathname+1, zFull);
    if( rc==SQLITE_OK ) rc = pVfs->xDelete(pVfs, zFull, 0);
    free(zFull);
    Tcl_SetObjResult(ip, Tcl_NewIntObj(rc));
    return TCL_OK;
  }
  if( sub==NAMES ){
    Tcl_Obj *pList = Tcl_NewObj();
    const char *z;
    int i;
    for(i=0; (z = proof_known(i))!=0; i++) Tcl_ListObjAppendElement(ip, pList, Tcl_NewStringObj(z, -1));
    Tcl_SetObjResult(ip, pList);
    return TCL_OK;
  }
  o = openFile(pVfs, zPath, changes);
  if( sub==EXISTS ){
    closeFile(&o);
    Tcl_SetObjResult(ip, Tcl_NewIntObj(o.rc==SQLITE_OK));
    return TCL_OK;
  }
  if( o.pFile==0 ){
    Tcl_SetObjResult(ip, Tcl_ObjPrintf("cannot open \"%s\" on the VFS (%d)", zPath, o.rc));
    return TCL_ERROR;
  }
  rc = lockFor(o.pFile, changes ? SQLITE_LOCK_EXCLUSIVE : SQLITE_LOCK_SHARED);
  if( rc==SQLITE_OK && (sub==SIZE || sub==READ) ) rc = o.pFile->pMethods->xFileSize(o.pFile, &size);
  if( rc==SQLITE_OK ) switch( sub ){
    case SIZE:
      Tcl_SetObjResult(ip, Tcl_NewWideIntObj(size));
      break;
    case READ: {
      unsigned char *a;
      if( oc>3 ) Tcl_GetWideIntFromObj(ip, ov[3], &off);
      if( oc>4 ) Tcl_GetWideIntFromObj(ip, ov[4], &amount);
      if( amount<0 || off+amount>size ) amount = size>off ? size-off : 0;
      /* A test may have changed the header, which says how many pages there are. */
      if( amount>MAX_READ ){ rc = SQLITE_TOOBIG; break; }
      a = malloc(amount+1);
      if( amount ) rc = o.pFile->pMethods->xRead(o.pFile, a, (int)amount, off);
      Tcl_SetObjResult(ip, Tcl_NewByteArrayObj(a, (int)amount));
      free(a);
      break;
    }
    case WRITE: case PUT: {
      int n;
      unsigned char *a = Tcl_GetByteArrayFromObj(ov[oc-1], &n);
      if( sub==WRITE ) Tcl_GetWideIntFromObj(ip, ov[3], &off);
      if( sub==PUT ) rc = o.pFile->pMethods->xTruncate(o.pFile, 0);
      if( rc==SQLITE_OK ) rc = writeAll(o.pFile, a, n, off, sub==PUT ? pageSizeOf(a, n) : 512);
      if( rc==SQLITE_OK ) rc = commit(o.pFile);
      Tcl_SetObjResult(ip, Tcl_NewIntObj(n));
      break;
    }
    default:
      Tcl_GetWideIntFromObj(ip, ov[3], &off);
      rc = o.pFile->pMethods->xTruncate(o.pFile, off);
      if( rc==SQLITE_OK ) rc = commit(o.pFile);
  }
  o.pFile->pMethods->xUnlock(o.pFile, SQLITE_LOCK_NONE);
  closeFile(&o);
  if( rc ){
    Tcl_SetObjResult(ip, Tcl_ObjPrintf("disk I/O error on \"%s\" (%d)", zPath, rc));
    return TCL_ERROR;
  }
  return TCL_OK;
}

#ifdef PROOF_EXTENSION
/* For stock.c, which loads the prelude when pagewire is there. */
int proof_tcl_init(Tcl_Interp *ip){
  Tcl_CreateObjCommand(ip, "vfsfile", vfsfile, 0, 0);
  return TCL_OK;
}
#else
static int prelude(Tcl_Interp *ip){
  const char *z = getenv("PROOF_PRELUDE");
  Tcl_CreateObjCommand(ip, "vfsfile", vfsfile, 0, 0);
  return z && z[0] ? Tcl_EvalFile(ip, z) : TCL_OK;
}

/* [load_testfixture_extensions CHILD] makes the commands of testfixture in another interpreter. */
static Tcl_ObjCmdProc *xLoad;
static ClientData pLoad;
static int loadExtensions(ClientData unused, Tcl_Interp *ip, int oc, Tcl_Obj *const*ov){
  int rc = xLoad(pLoad, ip, oc, ov);
  Tcl_Interp *pChild = rc==TCL_OK && oc==2 ? Tcl_GetSlave(ip, Tcl_GetString(ov[1])) : 0;
  Tcl_CmdInfo info;
  (void)unused;
  if( pChild==0 ) return rc;
  rc = prelude(pChild);
  if( rc ) Tcl_SetObjResult(ip, Tcl_GetObjResult(pChild));
  if( Tcl_GetCommandInfo(pChild, "load_testfixture_extensions", &info) ){
    Tcl_CreateObjCommand(pChild, "load_testfixture_extensions", loadExtensions, 0, 0);
  }
  return rc;
}
const char *proof_test_init(Tcl_Interp *ip){
  const char *z = sqlite3TestInit(ip);
  Tcl_CmdInfo info;
  if( Tcl_GetCommandInfo(ip, "load_testfixture_extensions", &info) ){
    xLoad = info.objProc;
    pLoad = info.objClientData;
    Tcl_CreateObjCommand(ip, "load_testfixture_extensions", loadExtensions, 0, 0);
  }
  if( prelude(ip)!=TCL_OK ){
    fprintf(stderr, "prelude: %s\n", Tcl_GetVar(ip, "errorInfo", TCL_GLOBAL_ONLY));
    exit(2);
  }
  return z;
}
#endif
