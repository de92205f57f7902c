# Beside SQLite's own Makefile, in its build folder: the programs of SQLite's test suite with pagewire's static library and the
# test build's VFS, from SQLite's list of sources and its flags, one object a file so that a new library needs only a link.
#   make -f suite.mk HERE=tests/sqlite LIBRARY=libpagewire.a HEADERS=sqlite_vfs/include testfixture-pw ...
include Makefile

CFLAGS = -O1 -w -DSQLITE_OS_UNIX=1
HOOK = -DSQLITE_ENABLE_BATCH_ATOMIC_WRITE -DSQLITE_EXTRA_INIT=proof_init
TEST = $(TCC) -DSQLITE_NO_SYNC=1 $(TEMP_STORE) \
	$(subst sqlite3TestInit,proof_test_init,$(TESTFIXTURE_FLAGS)) $(HOOK) -I$(HEADERS)
TOOL = $(TCC) $(SHELL_OPT) $(HOOK) -I$(HEADERS)
# What `rustc --print native-static-libs` says, after what SQLite needs.
LIBS_PW = $(LIBRARY) -lz -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc

TEST_OBJ = $(addprefix test-obj/,$(addsuffix .o,$(basename $(notdir $(TESTFIXTURE_SRC)))) proof_vfs.o proof_tcl.o \
	pagewire_static_init.o)
TOOL_OBJ = $(addprefix tool-obj/,sqlite3.o proof_vfs.o pagewire_static_init.o)
vpath %.c $(sort $(dir $(TESTFIXTURE_SRC))) $(HERE) $(HEADERS) $(TOP)/tool $(TOP)/mptest $(TOP)/test

test-obj/%.o: %.c
	@mkdir -p test-obj
	$(TEST) -c -o $@ $<
tool-obj/%.o: %.c
	@mkdir -p tool-obj
	$(TOOL) -c -o $@ $<
test-obj/proof_vfs.o test-obj/proof_tcl.o tool-obj/proof_vfs.o: $(HEADERS)/pagewire.h

# A program may be running while it is made again. proof/library says which library it was made with.
proof/testfixture: $(TEST_OBJ) $(LIBRARY) proof/library
	gcc -o $@.new $(filter %.o,$^) $(LIBTCL) $(LIBS_PW) && mv $@.new $@
proof/sqlite3: tool-obj/shell.o $(TOOL_OBJ) $(LIBRARY) proof/library
	gcc -o $@.new $(filter %.o,$^) $(LIBS_PW) && mv $@.new $@
proof/sqldiff: tool-obj/sqldiff.o $(TOOL_OBJ) $(LIBRARY) proof/library
	gcc -o $@.new $(filter %.o,$^) $(LIBS_PW) && mv $@.new $@
proof/mptester: tool-obj/mptest.o $(TOOL_OBJ) $(LIBRARY) proof/library
	gcc -o $@.new $(filter %.o,$^) $(LIBS_PW) && mv $@.new $@
proof/speedtest1: tool-obj/speedtest1.o $(TOOL_OBJ) $(LIBRARY) proof/library
	gcc -o $@.new $(filter %.o,$^) $(LIBS_PW) && mv $@.new $@
proof/kvtest: tool-obj/kvtest.o $(TOOL_OBJ) $(LIBRARY) proof/library
	gcc -o $@.new $(filter %.o,$^) $(LIBS_PW) && mv $@.new $@
proof/threadtest3: tool-obj/threadtest3.o tool-obj/test_multiplex.o $(TOOL_OBJ) $(LIBRARY) proof/library
	gcc -o $@.new $(filter %.o,$^) $(LIBS_PW) && mv $@.new $@

# The system's library and binding of SQLite, and pagewire as an extension: stock.c. What the options of that library are, it says itself.
STOCK_OPTIONS = $(shell echo 'package require sqlite3; sqlite3 db :memory:; foreach o [db eval {PRAGMA compile_options}] \
	{ puts -nonewline " -DSQLITE_$$o" }' | tclsh)
proof/proofstock.so: stock.c proof_tcl.c proof_vfs.c test_config.c test_md5.c $(HEADERS)/pagewire.h
	gcc -O1 -w -fPIC -shared -DPROOF_EXTENSION -I. -I$(TOP)/src -I$(HEADERS) -I/usr/include/tcl8.6 $(STOCK_OPTIONS) -o $@.new \
		$(filter %.c,$^) -l:libsqlite3.so.0 $(LIBTCL) && mv $@.new $@
proof/libpagewire.so: $(LIBRARY:.a=.so) proof/library
	install -m 755 $< $@
