/*
** The test build's own VFS "proof": a thin layer between SQLite and the VFS "pagewire", which becomes the default VFS of every
** program of SQLite's test suite. It is no part of the product. Everything that is read, written, locked or committed goes
** through pagewire; the layer adds what SQLite's tests expect of a test build:
**
**   1. Names. The tests open "test.db" in a directory of their own, and also by absolute paths, which pagewire refuses on
**      purpose. SQLite sees absolute paths here, as with the unix VFS; pagewire sees "@dir/test.db" for "/dir/test.db". The unix VFS
**      takes paths of 511 bytes, pagewire names of 400: a longer one is "@long/" and a hash of it.
**   2. Faults. Where os_unix.c consults the counters of SQLITE_TEST (sqlite3_io_error_pending, sqlite3_diskfull_pending,
**      sqlite3_open_file_count, sqlite3_sync_count), so does this file, and once more at the commit point, SQLITE_FCNTL_SYNC.
**      Not between a commit and its SQLITE_FCNTL_COMMIT_PHASETWO: what SQLite does then, to the database and to its journal, is
**      local to pagewire and cannot fail. SQLite's test build lets os.c fail by itself where memory is short; not then either.
**      Temporary files go through pagewire to the unix VFS, which consults the counters itself.
**   3. Order. A VFS of the test's own above this one may let xSync fail, which cannot fail in pagewire: there the commit waits for that
**      xSync, or for SQLITE_FCNTL_COMMIT_PHASETWO if there is none. test6.c's "crash" VFS holds writes back until xSync, which comes after SQLITE_FCNTL_SYNC, and passes no xSync on:
**      what arrives after the one and before SQLITE_FCNTL_COMMIT_PHASETWO is committed there.
**   4. Counts: with PROOF_COUNTS=FILE one line a process, of how many databases were opened on pagewire, and what was asked.
**   5. Stubs, for applications that look at the path with the operating system: with PROOF_STUBS=1 an empty file is made at the path
**      of a database that is created. Another file is another database, also while connections have that of a file that was removed:
**      the time at which the file was made chooses the first letter of the name. A file with something in it is refused, and who may
**      only read it gets a read-only connection, and a symbolic link leads to it, as with the unix VFS.
**   6. Calls: with PROOF_RPC=FILE one line a process, of the round trips that it waited for, and of the bytes that it sent and received, as
**      pagewire_rpc has them, heartbeats left out.
**   7. One session: with PROOF_KEEP=1 the process keeps a database of its own open from its first one on, so that its session and its
**      threads do not begin and end with each connection. A loop of thousands of them takes a fraction of the time then. The end of
**      the process ends it, so a file of tests with several processes may have to wait for the end of a lease.
**
** PROOF_VFS=unix leaves the unix VFS the default, to find out what a test does there. Compiled with -DPROOF_EXTENSION this is an
** extension for a program that has loaded pagewire (tests/applications, stock.c).
*/
#include "sqlite3.h"
#include "pagewire.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef SQLITE_TEST
extern int sqlite3_io_error_hit, sqlite3_io_error_hardhit, sqlite3_io_error_pending, sqlite3_io_error_persist;
extern int sqlite3_io_error_benign, sqlite3_diskfull_pending, sqlite3_diskfull, sqlite3_open_file_count;
extern int sqlite3_sync_count, sqlite3_fullsync_count, sqlite3_memdebug_vfs_oom_test;
static int ioError(void){
  if( (sqlite3_io_error_persist && sqlite3_io_error_hit) || sqlite3_io_error_pending-- == 1 ){
    sqlite3_io_error_hit++;
    if( !sqlite3_io_error_benign ) sqlite3_io_error_hardhit++;
    return 1;
  }
  return 0;
}
static int diskFull(void){
  if( sqlite3_diskfull_pending==0 ) return 0;
  if( sqlite3_diskfull_pending>1 ){ sqlite3_diskfull_pending--; return 0; }
  sqlite3_io_error_hit++;
  if( !sqlite3_io_error_benign ) sqlite3_io_error_hardhit++;
  sqlite3_diskfull = 1;
  sqlite3_io_error_hit = 1;
  return 1;
}
# define OPEN_COUNT(n) sqlite3_open_file_count += (n)
#else
static int ioError(void){ return 0; }
static int diskFull(void){ return 0; }
# define OPEN_COUNT(n)
#endif

#define MAX_NAME 512
/* Of a database for pagewire: its own limit, less what a super-journal adds. */
#define MAX_OURS 384
#define STUB_ROUNDS 60
#define MAX_LINKS 100
enum Kind { MAIN, BESIDE };

/* What is known of an open database. Not in its ProofFile, which a VFS above may move in memory (appendvfs.c does). */
typedef struct Database Database;
struct Database {
  Database *pNext;
  const char *zJournal;       /* Where SQLite keeps the name of its journal */
  char *zOurs;                /* The name for pagewire, with the URI's parameters behind it */
  int isPastCommit;           /* Between a SQLITE_FCNTL_SYNC that committed and what ends the transaction */
};

typedef struct ProofFile ProofFile;
struct ProofFile {
  sqlite3_file base;
  enum Kind kind;
  Database *pDatabase;        /* MAIN */
  const char *zJournal;       /* BESIDE: its name, if it is a journal */
  int isSuper;                /* BESIDE: a super-journal, or a child journal that is read to clean one up */
  int isDirty;                /* MAIN: written to since the last SQLITE_FCNTL_SYNC */
  int isUnder;                /* MAIN: opened while another VFS was the default one: it may be above this one */
  int isDue;                  /* MAIN: SQLITE_FCNTL_SYNC has come, and waits for xSync */
  int hasSuper;               /* MAIN: that one named a super-journal */
};

static sqlite3_vfs *pPagewire;
static Database *pAll;
static sqlite3_int64 nOpen, nRead, nWrite, nLock, nSync;

/* Every path that was opened as a database, for [glob]. */
typedef struct Known { struct Known *pNext; char zPath[1]; } Known;
static Known *pKnown;

/* Not one of SQLite's: its tests count them, and it may hold one of them when it calls. */
static pthread_mutex_t lists = PTHREAD_MUTEX_INITIALIZER;
static sqlite3_file *real(sqlite3_file *p){ return (sqlite3_file*)&((ProofFile*)p)[1]; }
static sqlite3_io_methods const *methods(sqlite3_file *p){ return real(p)->pMethods; }
#define COUNT(n) __atomic_fetch_add(&(n), 1, __ATOMIC_RELAXED)

/* How much of a path is that of the database: "-journal", "-wal" and "-mj" with nine digits, of a super-journal, come behind it. */
static size_t lengthOfDatabase(const char *z, size_t n){
  if( n>8 && memcmp(z+n-8, "-journal", 8)==0 ) return n-8;
  if( n>4 && memcmp(z+n-4, "-wal", 4)==0 ) return n-4;
  if( n>12 && memcmp(z+n-12, "-mj", 3)==0 ) return n-12;
  return n;
}

/* "/dir/test.db" is "@dir/test.db" to pagewire; nothing else begins with '/'. A long one has the same name each time, and its journal too. */
static const char *translated(const char *z, char *zBuf){
  size_t n, nDatabase, i;
  if( z==0 || z[0]!='/' || (n = strlen(z))>=MAX_NAME ) return z;
  nDatabase = lengthOfDatabase(z, n);
  if( nDatabase>MAX_OURS ){
    /* FNV-1a */
    unsigned long long hash = 0xcbf29ce484222325ULL;
    for(i=0; i<nDatabase; i++) hash = (hash ^ (unsigned char)z[i]) * 0x100000001b3ULL;
    sqlite3_snprintf(MAX_NAME, zBuf, "@long/%016llx%s", hash, z+nDatabase);
    return zBuf;
  }
  strcpy(zBuf, z);
  zBuf[0] = '@';
  return zBuf;
}

/* Pagewire knows a journal by the address of its name: that of the connection whose journal this is, or a copy of the text. */
static const char *besideName(const char *z, char *zBuf){
  const char *zFound = 0;
  char first = '@';
  Database *p;
  pthread_mutex_lock(&lists);
  for(p=pAll; p && !zFound; p=p->pNext){
    if( p->zJournal==z ) zFound = sqlite3_filename_journal(p->zOurs);
    else if( p->zJournal && strcmp(p->zJournal, z)==0 ) first = p->zOurs[0];
  }
  pthread_mutex_unlock(&lists);
  if( zFound || translated(z, zBuf)!=zBuf ) return zFound ? zFound : z;
  zBuf[0] = first;
  return zBuf;
}

/* Databases between their commit and what ends the transaction. */
static void setPastCommit(ProofFile *p, int isPast){
#ifdef SQLITE_TEST
  static int nPast = 0, oomTest = 0;
#endif
  if( p->kind!=MAIN || p->pDatabase->isPastCommit==isPast ) return;
  p->pDatabase->isPastCommit = isPast;
#ifdef SQLITE_TEST
  pthread_mutex_lock(&lists);
  if( isPast && nPast++==0 ){
    oomTest = sqlite3_memdebug_vfs_oom_test;
    sqlite3_memdebug_vfs_oom_test = 0;
  }else if( !isPast && --nPast==0 ){
    sqlite3_memdebug_vfs_oom_test = oomTest;
  }
  pthread_mutex_unlock(&lists);
#endif
}
/* Whether the connection whose journal this is is there, where SQLite keeps its name. */
static int journalIsPastCommit(const char *zJournal){
  int isPast = 0;
  Database *p;
  pthread_mutex_lock(&lists);
  for(p=pAll; p && !isPast; p=p->pNext) isPast = p->isPastCommit && p->zJournal==zJournal;
  pthread_mutex_unlock(&lists);
  return isPast;
}
static int isPastCommit(ProofFile *p){
  return p->kind==MAIN ? p->pDatabase->isPastCommit : p->zJournal && journalIsPastCommit(p->zJournal);
}

static void remember(const char *zPath){
  Known *p;
  for(p=pKnown; p; p=p->pNext) if( strcmp(p->zPath, zPath)==0 ) return;
  p = malloc(sizeof(Known)+strlen(zPath));
  if( p==0 ) return;
  strcpy(p->zPath, zPath);
  p->pNext = pKnown;
  pKnown = p;
}
/* The paths, one after the other from index 0; NULL after the last one. */
const char *proof_known(int index){
  Known *p = pKnown;
  while( p && index-->0 ) p = p->pNext;
  return p ? p->zPath : 0;
}

/* For the Tcl commands of the test build: where SQLite keeps the name of the journal at this path, if there is one now. */
const char *proof_journal(const char *zPath){
  const char *zFound = 0;
  Database *p;
  pthread_mutex_lock(&lists);
  for(p=pAll; p && !zFound; p=p->pNext){
    int exists = 0;
    if( p->zJournal==0 || strcmp(p->zJournal, zPath)!=0 ) continue;
    pPagewire->xAccess(pPagewire, sqlite3_filename_journal(p->zOurs), SQLITE_ACCESS_EXISTS, &exists);
    if( exists ) zFound = p->zJournal;
  }
  pthread_mutex_unlock(&lists);
  return zFound;
}

static void freeDatabase(Database *p){
  if( p ) sqlite3_free_filename(p->zOurs);
  free(p);
}
static int proofClose(sqlite3_file *pFile){
  ProofFile *p = (ProofFile*)pFile;
  int rc = methods(pFile)->xClose(real(pFile));
  if( p->kind==MAIN ){
    Database **pp;
    setPastCommit(p, 0);
    pthread_mutex_lock(&lists);
    for(pp=&pAll; *pp!=p->pDatabase; pp=&(*pp)->pNext){}
    *pp = p->pDatabase->pNext;
    pthread_mutex_unlock(&lists);
    freeDatabase(p->pDatabase);
  }
  OPEN_COUNT(-1);
  p->base.pMethods = 0;
  return rc;
}
static int proofRead(sqlite3_file *p, void *buf, int n, sqlite3_int64 off){
  COUNT(nRead);
  if( ioError() ) return SQLITE_IOERR_READ;
  return methods(p)->xRead(real(p), buf, n, off);
}
static int proofWrite(sqlite3_file *p, const void *buf, int n, sqlite3_int64 off){
  ProofFile *f = (ProofFile*)p;
  COUNT(nWrite);
  if( f->kind==MAIN ) setPastCommit(f, 0);
  if( !isPastCommit(f) ){
    if( ioError() ) return SQLITE_IOERR_WRITE;
    if( diskFull() ) return SQLITE_FULL;
  }
  f->isDirty = 1;
  f->isDue = 0;
  if( f->isSuper ){
    /* The name of a child journal; anything else is what the "crash" VFS tears before it ends the process. */
    char zBuf[MAX_NAME];
    const char *z = (const char*)buf;
    if( n<2 || n>=MAX_NAME || z[0]!='/' || z[n-1]!=0 || strlen(z)!=(size_t)(n-1) ) return SQLITE_OK;
    return methods(p)->xWrite(real(p), besideName(z, zBuf), n, off);
  }
  return methods(p)->xWrite(real(p), buf, n, off);
}
static int proofTruncate(sqlite3_file *p, sqlite3_int64 n){
  if( !isPastCommit((ProofFile*)p) && ioError() ) return SQLITE_IOERR_TRUNCATE;
  return methods(p)->xTruncate(real(p), n);
}
/* The commit point. */
static int commit(sqlite3_file *p, void *pSuper){
  ProofFile *f = (ProofFile*)p;
  int rc = methods(p)->xFileControl(real(p), SQLITE_FCNTL_SYNC, pSuper);
  setPastCommit(f, rc==SQLITE_OK && f->isDirty && pSuper==0);
  f->isDirty = f->isDue = 0;
  return rc;
}
static int proofSync(sqlite3_file *p, int flags){
  ProofFile *f = (ProofFile*)p;
  int rc;
  if( !isPastCommit(f) && diskFull() ) return SQLITE_FULL;
#ifdef SQLITE_TEST
  if( (flags & 0x0F)==SQLITE_SYNC_FULL ) sqlite3_fullsync_count++;
  sqlite3_sync_count++;
#endif
  if( !isPastCommit(f) && ioError() ) return SQLITE_IOERR_FSYNC;
  rc = f->isDue ? commit(p, 0) : SQLITE_OK;
  return rc==SQLITE_OK ? methods(p)->xSync(real(p), flags) : rc;
}
static int proofFileSize(sqlite3_file *p, sqlite3_int64 *pn){
  if( !isPastCommit((ProofFile*)p) && ioError() ) return SQLITE_IOERR_FSTAT;
  return methods(p)->xFileSize(real(p), pn);
}
static int proofLock(sqlite3_file *p, int level){
  COUNT(nLock);
  return methods(p)->xLock(real(p), level);
}
static int proofUnlock(sqlite3_file *p, int level){
  ProofFile *f = (ProofFile*)p;
  setPastCommit(f, 0);
  if( level<SQLITE_LOCK_RESERVED ) f->isDirty = f->isDue = f->hasSuper = 0;
  return methods(p)->xUnlock(real(p), level);
}
static int proofCheckReservedLock(sqlite3_file *p, int *pOut){
  if( ioError() ) return SQLITE_IOERR_CHECKRESERVEDLOCK;
  return methods(p)->xCheckReservedLock(real(p), pOut);
}
static int proofFileControl(sqlite3_file *p, int op, void *pArg){
  ProofFile *f = (ProofFile*)p;
  char zBuf[MAX_NAME];
  int rc;
  if( op==SQLITE_FCNTL_COMMIT_PHASETWO ){
    setPastCommit(f, 0);
    if( f->isDirty && !f->hasSuper ){
      rc = methods(p)->xFileControl(real(p), SQLITE_FCNTL_SYNC, 0);
      if( rc!=SQLITE_OK ) return rc;
    }
    f->isDirty = f->isDue = 0;
  }
  if( op!=SQLITE_FCNTL_SYNC || f->kind!=MAIN ) return methods(p)->xFileControl(real(p), op, pArg);
  COUNT(nSync);
  if( f->isDirty && diskFull() ) return SQLITE_FULL;
  if( f->isDirty && ioError() ) return SQLITE_IOERR_FSYNC;
  f->hasSuper = pArg!=0;
  if( pArg==0 && f->isDirty && f->isUnder ){
    f->isDue = 1;
    return SQLITE_OK;
  }
  return commit(p, pArg ? (void*)translated((const char*)pArg, zBuf) : 0);
}
static int proofSectorSize(sqlite3_file *p){ return methods(p)->xSectorSize(real(p)); }
static int proofDeviceCharacteristics(sqlite3_file *p){ return methods(p)->xDeviceCharacteristics(real(p)); }

static const sqlite3_io_methods proofMethods = {
  1, proofClose, proofRead, proofWrite, proofTruncate, proofSync, proofFileSize, proofLock, proofUnlock,
  proofCheckReservedLock, proofFileControl, proofSectorSize, proofDeviceCharacteristics, 0, 0, 0, 0, 0, 0
};

/* A database lies in a directory that is there, as the tests expect of a path; itself it is on no disk. */
static int hasPlace(const char *z){
  char zDir[MAX_NAME];
  struct stat st;
  char *zSlash;
  if( strlen(z)>=MAX_NAME || (stat(z, &st)==0 && S_ISDIR(st.st_mode)) ) return 0;
  strcpy(zDir, z);
  zSlash = strrchr(zDir, '/');
  if( zSlash==0 ) return 1;
  if( zSlash==zDir ) zSlash++;
  *zSlash = 0;
  return stat(zDir, &st)==0 && S_ISDIR(st.st_mode);
}

static int hasStubs(void){
  const char *z = getenv("PROOF_STUBS");
  return z && strcmp(z, "1")==0;
}

/* 5. of the header: what the name of the database at this path begins with, 0 if a plain file could not be opened there. */
static char stubLocked(const char *zPath, int flags){
  static const char zFirst[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  char zBuf[MAX_NAME];
  struct stat st;
  int fd, i, rc;
  for(i=0; i<STUB_ROUNDS; i++){
    int isNew = stat(zPath, &st)!=0;
    if( isNew ){
      if( 0==(flags & SQLITE_OPEN_CREATE) ) return 0;
      fd = open(zPath, O_RDWR|O_CREAT|O_EXCL, 0644);
      if( fd<0 && errno==EEXIST ) continue;
      if( fd<0 ) return 0;
      rc = fstat(fd, &st);
      close(fd);
      if( rc ) return 0;
    }
    if( st.st_size>0 || access(zPath, R_OK) ) return 0;
    translated(zPath, zBuf);
    zBuf[0] = zFirst[st.st_mtim.tv_nsec % (sizeof(zFirst)-1)];
    if( !isNew ) return zBuf[0];
    /* An earlier file may have had this letter; if its database is open still, another one has to be found. */
    rc = pPagewire->xDelete(pPagewire, zBuf, 0);
    if( rc==SQLITE_OK || rc==SQLITE_IOERR_DELETE_NOENT ) return zBuf[0];
    unlink(zPath);
  }
  return 0;
}

static char stub(const char *zPath, int flags){
  /* Nobody opens what another thread is about to delete. */
  static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
  char first;
  if( !hasStubs() ) return '@';
  pthread_mutex_lock(&one);
  first = stubLocked(zPath, flags);
  pthread_mutex_unlock(&one);
  return first;
}

/* The flags that are possible at a stub with these permissions. */
static int stubFlags(const char *zPath, int flags){
  if( !hasStubs() || 0==(flags & SQLITE_OPEN_READWRITE) || access(zPath, W_OK)==0 ) return flags;
  return (flags & ~(SQLITE_OPEN_READWRITE|SQLITE_OPEN_CREATE)) | SQLITE_OPEN_READONLY;
}

static char *oursWithParameters(const char *zName, char first){
  const char *az[2*64];
  char zBuf[MAX_NAME], zJournal[MAX_NAME+16], zWal[MAX_NAME+16];
  const char *zKey, *zOurs = translated(zName, zBuf);
  int n;
  if( zOurs==zBuf ) zBuf[0] = first;
  for(n=0; n<64 && (zKey = sqlite3_uri_key(zName, n))!=0; n++){
    az[2*n] = zKey;
    az[2*n+1] = sqlite3_uri_parameter(zName, zKey);
  }
  sqlite3_snprintf(sizeof(zJournal), zJournal, "%s-journal", zOurs);
  sqlite3_snprintf(sizeof(zWal), zWal, "%s-wal", zOurs);
  return (char*)sqlite3_create_filename(zOurs, zJournal, zWal, n, az);
}

/* 6. of the header. The name as SQLite lays it out: no parameters, then those of the journal and the WAL. Nothing of SQLite's memory. */
static void keepSession(void){
  static const char zName[] = "\0\0\0\0@keeper\0\0@keeper-journal\0@keeper-wal\0\0";
  static int isAsked = 0;
  const char *zKeep = getenv("PROOF_KEEP");
  sqlite3_file *p;
  int out = 0;
  if( __atomic_exchange_n(&isAsked, 1, __ATOMIC_SEQ_CST) || zKeep==0 || strcmp(zKeep, "1")!=0 ) return;
  p = calloc(1, pPagewire->szOsFile);
  if( p ) pPagewire->xOpen(pPagewire, &zName[4], p, SQLITE_OPEN_MAIN_DB|SQLITE_OPEN_READWRITE|SQLITE_OPEN_CREATE, &out);
}

static int proofOpen(sqlite3_vfs *pVfs, const char *zName, sqlite3_file *pFile, int flags, int *pOutFlags){
  ProofFile *p = (ProofFile*)pFile;
  char zBuf[MAX_NAME];
  const char *zOurs;
  int rc;
  if( zName==0 || 0==(flags & (SQLITE_OPEN_MAIN_DB|SQLITE_OPEN_MAIN_JOURNAL|SQLITE_OPEN_SUPER_JOURNAL|SQLITE_OPEN_WAL)) ){
    return pPagewire->xOpen(pPagewire, zName, pFile, flags, pOutFlags);
  }
  memset(p, 0, pVfs->szOsFile);
  if( flags & SQLITE_OPEN_MAIN_DB ){
    char first = hasPlace(zName) ? stub(zName, flags) : 0;
    if( first==0 ) return SQLITE_CANTOPEN;
    flags = stubFlags(zName, flags);
    p->kind = MAIN;
    p->isUnder = sqlite3_vfs_find(0)!=pVfs;
    p->pDatabase = calloc(1, sizeof(Database));
    if( p->pDatabase ) p->pDatabase->zOurs = oursWithParameters(zName, first);
    if( p->pDatabase==0 || p->pDatabase->zOurs==0 ){
      free(p->pDatabase);
      return SQLITE_NOMEM;
    }
    zOurs = p->pDatabase->zOurs;
    COUNT(nOpen);
  }else{
    p->kind = BESIDE;
    zOurs = besideName(zName, zBuf);
  }
  rc = pPagewire->xOpen(pPagewire, zOurs, real(pFile), flags, pOutFlags);
  if( rc!=SQLITE_OK ){
    freeDatabase(p->pDatabase);
    return rc;
  }
  p->base.pMethods = &proofMethods;
  OPEN_COUNT(+1);
  if( p->kind==MAIN ){
    p->pDatabase->zJournal = sqlite3_filename_journal(zName);
    pthread_mutex_lock(&lists);
    p->pDatabase->pNext = pAll;
    pAll = p->pDatabase;
    remember(zName);
    pthread_mutex_unlock(&lists);
    keepSession();
  }else{
    p->isSuper = (flags & SQLITE_OPEN_SUPER_JOURNAL)!=0;
    if( flags & SQLITE_OPEN_MAIN_JOURNAL ) p->zJournal = zName;
  }
  return SQLITE_OK;
}
static int proofDelete(sqlite3_vfs *pVfs, const char *zName, int syncDir){
  char zBuf[MAX_NAME];
  (void)pVfs;
  if( !journalIsPastCommit(zName) && ioError() ) return SQLITE_IOERR_DELETE;
#ifdef SQLITE_TEST
  if( syncDir & 1 ) sqlite3_sync_count++;
#endif
  return pPagewire->xDelete(pPagewire, besideName(zName, zBuf), syncDir);
}
static int proofAccess(sqlite3_vfs *pVfs, const char *zName, int flags, int *pOut){
  char zBuf[MAX_NAME];
  (void)pVfs;
  if( ioError() ) return SQLITE_IOERR_ACCESS;
  /* Of a directory. */
  if( flags==SQLITE_ACCESS_READWRITE ) return pPagewire->xAccess(pPagewire, zName, flags, pOut);
  return pPagewire->xAccess(pPagewire, besideName(zName, zBuf), flags, pOut);
}

typedef struct FullPath { char *z; int n, most, nLinks; } FullPath;

/* Puts a path behind what is there. Where databases have stubs, a symbolic link to one is followed, as the unix VFS does. */
static int appendPath(FullPath *p, char *z){
  char zLink[MAX_NAME];
  char *zPart, *zState;
  struct stat st;
  for(zPart=strtok_r(z, "/", &zState); zPart; zPart=strtok_r(0, "/", &zState)){
    int nPart = (int)strlen(zPart), nBefore = p->n, rc;
    ssize_t nLink;
    if( strcmp(zPart, ".")==0 ) continue;
    if( strcmp(zPart, "..")==0 ){
      while( p->n>0 && p->z[--p->n]!='/' ){}
      p->z[p->n] = 0;
      continue;
    }
    if( p->n+nPart+2>p->most || p->n+nPart+2>MAX_NAME ) return SQLITE_CANTOPEN;
    p->z[p->n++] = '/';
    memcpy(p->z+p->n, zPart, nPart+1);
    p->n += nPart;
    if( !hasStubs() || lstat(p->z, &st)!=0 || !S_ISLNK(st.st_mode) ) continue;
    nLink = readlink(p->z, zLink, sizeof(zLink)-1);
    if( nLink<=0 || ++p->nLinks>MAX_LINKS ) return SQLITE_CANTOPEN;
    zLink[nLink] = 0;
    p->n = zLink[0]=='/' ? 0 : nBefore;
    p->z[p->n] = 0;
    rc = appendPath(p, zLink);
    if( rc!=SQLITE_OK ) return rc;
  }
  return SQLITE_OK;
}

/* The absolute path, as the unix VFS makes it; the VFS below has the last word on whether the name is one. */
static int proofFullPathname(sqlite3_vfs *pVfs, const char *z, int nOut, char *zOut){
  char zAbs[4*MAX_NAME], zBuf[MAX_NAME], zIgnored[MAX_NAME];
  FullPath path = {zOut, 0, nOut, 0};
  int rc;
  (void)pVfs;
  if( strlen(z)>=2*MAX_NAME ) return SQLITE_CANTOPEN;
  zAbs[0] = 0;
  if( z[0]!='/' && getcwd(zAbs, 2*MAX_NAME-2)==0 ) return SQLITE_CANTOPEN;
  strcat(zAbs, "/");
  strcat(zAbs, z);
  if( nOut<2 ) return SQLITE_CANTOPEN;
  zOut[0] = 0;
  rc = appendPath(&path, zAbs);
  if( rc!=SQLITE_OK ) return rc;
  if( path.n==0 ){ zOut[0] = '/'; zOut[1] = 0; return SQLITE_OK; }
  rc = pPagewire->xFullPathname(pPagewire, translated(zOut, zBuf), MAX_NAME, zIgnored);
  return rc==SQLITE_OK && path.nLinks ? SQLITE_OK_SYMLINK : rc;
}
static void *proofDlOpen(sqlite3_vfs *v, const char *z){ (void)v; return pPagewire->xDlOpen(pPagewire, z); }
static void proofDlError(sqlite3_vfs *v, int n, char *z){ (void)v; pPagewire->xDlError(pPagewire, n, z); }
static void (*proofDlSym(sqlite3_vfs *v, void *p, const char *z))(void){ (void)v; return pPagewire->xDlSym(pPagewire, p, z); }
static void proofDlClose(sqlite3_vfs *v, void *p){ (void)v; pPagewire->xDlClose(pPagewire, p); }
static int proofRandomness(sqlite3_vfs *v, int n, char *z){ (void)v; return pPagewire->xRandomness(pPagewire, n, z); }
static int proofSleep(sqlite3_vfs *v, int n){ (void)v; return pPagewire->xSleep(pPagewire, n); }
static int proofCurrentTime(sqlite3_vfs *v, double *p){ (void)v; return pPagewire->xCurrentTime(pPagewire, p); }
static int proofGetLastError(sqlite3_vfs *v, int n, char *z){ (void)v; return pPagewire->xGetLastError(pPagewire, n, z); }
static int proofCurrentTimeInt64(sqlite3_vfs *v, sqlite3_int64 *p){
  (void)v;
  return pPagewire->xCurrentTimeInt64(pPagewire, p);
}

static sqlite3_vfs proofVfs = {
  2, 0, MAX_NAME, 0, "proof", 0, proofOpen, proofDelete, proofAccess, proofFullPathname, proofDlOpen, proofDlError,
  proofDlSym, proofDlClose, proofRandomness, proofSleep, proofCurrentTime, proofGetLastError, proofCurrentTimeInt64, 0, 0, 0
};

static void writeCounts(void){
  const char *zFile = getenv("PROOF_COUNTS");
  char zLine[200];
  int fd, n;
  if( zFile==0 || (fd = open(zFile, O_WRONLY|O_APPEND|O_CREAT, 0666))<0 ) return;
  n = snprintf(zLine, sizeof(zLine), "%lld\t%lld\t%lld\t%lld\t%lld\n", nOpen, nRead, nWrite, nLock, nSync);
  if( write(fd, zLine, n)!=n ) perror(zFile);
  close(fd);
}

static void writeCalls(void){
  const char *zFile = getenv("PROOF_RPC");
  sqlite3 *db = 0;
  sqlite3_stmt *pStmt = 0;
  FILE *pOut;
  if( zFile==0 || (pOut = fopen(zFile, "a"))==0 ) return;
  if( sqlite3_open(":memory:", &db)==SQLITE_OK
   && sqlite3_prepare_v2(db, "SELECT sum(count), sum(bytes_sent), sum(bytes_received) FROM pagewire_rpc WHERE kind<>'heartbeat'",
                         -1, &pStmt, 0)==SQLITE_OK
   && sqlite3_step(pStmt)==SQLITE_ROW ){
    fprintf(pOut, "%lld\t%lld\t%lld\n", sqlite3_column_int64(pStmt, 0), sqlite3_column_int64(pStmt, 1),
            sqlite3_column_int64(pStmt, 2));
  }else{
    fprintf(stderr, "%s: %s\n", zFile, sqlite3_errmsg(db));
  }
  sqlite3_finalize(pStmt);
  sqlite3_close(db);
  fclose(pOut);
}

/* Puts the layer on pagewire, which is registered, and makes it the default VFS. */
static int begin(void){
  static int isFirst = 1;
  pPagewire = sqlite3_vfs_find("pagewire");
  if( pPagewire==0 ) return SQLITE_ERROR;
  proofVfs.szOsFile = (int)((sizeof(ProofFile)+7)&~(size_t)7) + pPagewire->szOsFile;
  if( isFirst ){
    isFirst = 0;
    atexit(writeCounts);
    atexit(writeCalls);
  }
  return sqlite3_vfs_register(&proofVfs, 1);
}

#ifdef PROOF_EXTENSION
/* For stock.c, which is linked with this. */
int proof_begin(void){ return begin(); }
/* Linked with the library of SQLite that the program uses, so that it needs none of an extension's pointers. */
int sqlite3_extension_init(sqlite3 *db, char **pzErr, const void *pUnused){
  int rc = begin();
  (void)db; (void)pzErr; (void)pUnused;
  return rc==SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : rc;
}
#else
/* For -DSQLITE_EXTRA_INIT=proof_init: runs in every sqlite3_initialize(), also after a sqlite3_shutdown(). */
int proof_init(const char *zUnused){
  const char *zVfs = getenv("PROOF_VFS");
  int rc;
  if( zVfs && strcmp(zVfs, "unix")==0 ) return SQLITE_OK;
  rc = pagewire_static_init(zUnused);
  return rc==SQLITE_OK ? begin() : rc;
}
#endif
