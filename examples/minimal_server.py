"""A complete page server in one file: tier *minimal* of proto/README.md, everything in memory, every version kept.

    python minimal_server.py PORT        needs grpcio and grpcio-tools; the protocol is read from proto/

One lock round everything makes each call a transaction."""
import collections, concurrent.futures, os, pathlib, sys, threading, time, zlib
import grpc
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "proto"))
pb, rpc = grpc.protos_and_services("pagewire/v1/pagewire.proto")

TTL = float(os.environ.get("PAGEWIRE_LEASE_TTL_MS", "5000")) / 1000
CODES = {"DATABASE_NOT_FOUND": "NOT_FOUND", "VERSION_GONE": "OUT_OF_RANGE", "INVALID": "INVALID_ARGUMENT", "LIMIT": "RESOURCE_EXHAUSTED"}
LOCK = threading.RLock()
class Refused(Exception):
    """One of the reasons of the protocol, and a text."""
# pages: number -> (content, version that wrote it)
Version = collections.namedtuple("Version", "number size count pages commit", defaults=(0, 0, 0, {}, None))

def snapshot(version):
    return pb.Snapshot(version=version.number, page_size=version.size, page_count=version.count)
class Database:
    def __init__(self):
        self.id, self.versions, self.epoch, self.holder = os.urandom(16), [Version()], 0, None
class Session:
    def __init__(self):  # database id -> open_sequence; staging id -> (database id, page size, pages)
        self.heard, self.open, self.stagings = time.monotonic(), {}, {}

def locked(call):
    """A call of the service: under the lock, refusals turned into a status."""
    def wrapped(self, request, context):
        try:
            with LOCK:
                return call(self, request)
        except Refused as refused:
            reason, text = refused.args
            context.set_trailing_metadata((("pagewire-reason", reason),))
            context.abort(grpc.StatusCode[CODES.get(reason, "FAILED_PRECONDITION")], text)
    return wrapped

def checked(page, size):
    if not 0 < page.number < 2**32 - 1 or len(page.content) not in (0, size) or zlib.crc32(page.content) != page.crc32:
        raise Refused("INVALID", f"page {page.number} is not what was sent")
    return page.content or bytes(size)

class PageService(rpc.PageServiceServicer):
    def __init__(self):
        self.incarnation, self.sessions, self.names, self.ids = os.urandom(16), {}, {}, {}
    def sweep(self):
        for id, session in list(self.sessions.items()):
            if time.monotonic() - session.heard > TTL:
                self.end(id)
    def end(self, id):
        for database in self.sessions.pop(id, Session()).open:
            self.close(id, database)
    def close(self, session, database):
        if database in self.ids and self.ids[database].holder == session:
            self.ids[database].holder = None
    def session(self, request):
        self.sweep()
        if request.session_id not in self.sessions:
            raise Refused("SESSION_UNKNOWN", "the session is not known")
        return self.sessions[request.session_id]
    def opened(self, request, database_id=None):
        session, id = self.session(request), request.database_id if database_id is None else database_id
        if id not in session.open or id not in self.ids:
            raise Refused("DATABASE_NOT_OPEN", "the database is not open in this session")
        return session, self.ids[id]
    def Session(self, requests, context):
        id = None
        for request in requests:
            with LOCK:
                self.sweep()
                what = request.WhichOneof("message") or "hello"
                message = getattr(request, what)
                if what == "hello":
                    id, resumed = message.session_id, message.session_id in self.sessions
                    self.sessions.setdefault(id, Session())
                    leases = [pb.HeldLease(database_id=d.id, epoch=d.epoch) for d in self.ids.values() if d.holder == id]
                    limits = pb.Limits(max_message_bytes=8 << 20, max_read_pages=1024, max_commit_databases=126, max_name_bytes=400, max_open_databases=65536)
                    yield pb.SessionResponse(welcome=pb.Welcome(protocol_major=1, incarnation=self.incarnation, lease_ttl_ms=int(TTL * 1000), resumed=resumed,
                        leases=leases, limits=limits, store=pb.StoreCapabilities(store_name="python"), server_name="minimal_server.py"))
                elif id not in self.sessions or what == "goodbye":
                    return self.end(id)
                session = self.sessions[id]
                session.heard = time.monotonic()
                if what == "heartbeat":
                    yield pb.SessionResponse(heartbeat_ack=pb.HeartbeatAck(sequence=message.sequence))
                elif what == "release_lease" and self.ids.get(message.database_id, Database()).epoch == message.epoch:
                    self.close(id, message.database_id)
                elif what == "close_database" and session.open.get(message.database_id, 2**64) <= message.open_sequence:
                    del session.open[message.database_id]
                    self.close(id, message.database_id)
    @locked
    def OpenDatabase(self, request):
        opens, found = self.session(request).open, self.names.get(request.name)
        if request.mode != pb.OPEN_MODE_CREATE and (found is None or found.versions[-1].number == 0):
            raise Refused("DATABASE_NOT_FOUND", "there is no such database")
        if found is None:
            found = self.names[request.name] = Database()
            self.ids[found.id] = found
        opens[found.id] = max(opens.get(found.id, 0), request.open_sequence)
        return pb.OpenDatabaseResponse(database_id=found.id, head=snapshot(found.versions[-1]))
    @locked
    def BeginSnapshot(self, request):
        _, database = self.opened(request)
        return pb.BeginSnapshotResponse(head=snapshot(database.versions[-1]), changes=pb.Changes(all=True))
    @locked
    def ReadPages(self, request):
        _, database = self.opened(request)
        if request.version >= len(database.versions):
            raise Refused("VERSION_GONE", f"there is no version {request.version}")
        pages, answer, room = database.versions[request.version].pages, pb.ReadPagesResponse(), 4 << 20
        for number in request.pages:
            content, version = pages.get(number, (b"", 0))
            if (room := room - len(content)) < 0:
                break
            answer.pages.add(number=number, content=content, crc32=zlib.crc32(content), version=version)
        return answer
    @locked
    def AcquireLease(self, request):
        _, database = self.opened(request)
        if database.holder not in (None, request.session_id):
            return pb.AcquireLeaseResponse(pending=pb.LeasePending(ahead=1))
        if database.holder is None or database.epoch <= request.released_epoch:
            database.epoch, database.holder = database.epoch + 1, request.session_id
        return pb.AcquireLeaseResponse(granted=pb.LeaseGrant(epoch=database.epoch, head=snapshot(database.versions[-1]), changes=pb.Changes(all=True)))
    @locked
    def StagePages(self, requests):
        requests = list(requests)
        header, sent = requests[0].header, [page for request in requests for page in request.pages]
        session, database = self.opened(header)
        _, size, pages = session.stagings.setdefault(header.staging_id, (database.id, header.page_size, {}))
        pages.update((page.number, checked(page, size)) for page in sent)
        return pb.StagePagesResponse(page_count=len(sent))
    @locked
    def Commit(self, requests):
        requests = list(requests)
        header, finish = requests[0].header, requests[-1].finish
        received = [(batch.database_index, page) for request in requests for batch in request.batches for page in batch.pages]
        checksum = zlib.crc32(b"".join(page.crc32.to_bytes(4, "little") for _, page in received))
        if not requests[-1].HasField("finish") or (finish.page_count, finish.crc32) != (len(received), checksum):
            raise Refused("INVALID", "finish: not what was sent")
        named = [self.opened(header, part.database_id) for part in header.databases]
        made = [database.versions[part.base_version + 1 :][:1] for part, (_, database) in zip(header.databases, named)]
        if not all(version and version[0].commit == header.commit_id for version in made):
            made = []
            for index, (part, (session, database)) in enumerate(zip(header.databases, named)):
                head = database.versions[-1]
                if head.number != part.base_version:
                    return pb.CommitResponse(conflict=pb.CommitConflict(database_index=index, head_version=head.number))
                if database.epoch != part.epoch or database.holder != header.session_id:
                    return pb.CommitResponse(lease_lost=pb.CommitLeaseLost(database_index=index, current_epoch=database.epoch))
                writes = {}
                for staging in part.staging_ids:
                    if session.stagings.get(staging, ())[:2] != (database.id, part.page_size):
                        raise Refused("STAGING_UNKNOWN", "the staging is not known")
                    writes.update(session.stagings[staging][2])
                writes.update((page.number, checked(page, part.page_size)) for at, page in received if at == index)
                pages = dict(head.pages) if head.size == part.page_size else {}
                pages.update((number, (content, head.number + 1)) for number, content in writes.items())
                pages = {number: page for number, page in pages.items() if number <= part.page_count}
                made.append(Version(head.number + 1, part.page_size if part.page_count else 0, part.page_count, pages, header.commit_id))
            for version, part, (session, database) in zip(made, header.databases, named):
                database.versions.append(version)
                for staging in part.staging_ids:
                    session.stagings.pop(staging, None)
        return pb.CommitResponse(committed=pb.Committed(versions=[part.base_version + 1 for part in header.databases]))
    @locked
    def ResolveCommit(self, request):
        named = [self.opened(request, part.database_id)[1] for part in request.participants]
        first, part = named[0], request.participants[0]
        made = first.versions[part.base_version + 1 :][:1]
        if made and made[0].commit == request.commit_id:
            return pb.ResolveCommitResponse(committed=pb.Committed(versions=[part.base_version + 1 for part in request.participants]))
        if not made and first.epoch == part.epoch:
            first.epoch += 1
        return pb.ResolveCommitResponse(aborted=pb.CommitAborted(epochs=[d.epoch if d.holder == request.session_id else 0 for d in named]))
    @locked
    def ListDatabases(self, request):
        born = [(name, found.id, snapshot(found.versions[-1])) for name, found in self.names.items() if found.versions[-1].number > 0]
        wanted = sorted((e for e in born if e[0].startswith(request.prefix) and e[0].encode() > request.after.encode()), key=lambda e: e[0].encode())
        entries = [pb.DatabaseEntry(name=name, database_id=id, head=head) for name, id, head in wanted]
        return pb.ListDatabasesResponse(databases=entries[: request.limit], more=len(entries) > request.limit)
    @locked
    def DeleteDatabase(self, request):
        self.sweep()
        if request.name not in self.names:
            raise Refused("DATABASE_NOT_FOUND", "there is no such database")
        if any(self.names[request.name].id in session.open for session in self.sessions.values()):
            raise Refused("LIMIT", "the database is open: close it first")
        return pb.DeleteDatabaseResponse(database_id=self.ids.pop(self.names.pop(request.name).id).id)

if __name__ == "__main__":
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=64), options=[("grpc.max_receive_message_length", 8 << 20)])
    rpc.add_PageServiceServicer_to_server(PageService(), server)
    port = server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()
