/** A complete page server in one file: tier *minimal* of proto/README.md, everything in memory, every version kept.
 *
 *     npm install && npm run build && node build/minimal_server.js PORT [PROTO_DIRECTORY]     the protocol is read from proto/
 *
 * A handler runs from beginning to end before the next one does, which makes each call a transaction. */
import { randomBytes } from "node:crypto";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

/** A message as proto-loader gives and takes it: names as in the file, 64-bit numbers as numbers, bytes as Buffer. */
type Message = Record<string, any>;
type Answer = grpc.sendUnaryData<Message>;
type Page = { content: Buffer; version: number };
/** `pages` has every page that was ever written and is within `count`. */
type Version = { number: number; size: number; count: number; pages: Map<number, Page>; commit: string };
type Database = { name: string; id: string; versions: Version[]; epoch: number; holder: string };
type Staging = { database: Database; size: number; pages: Map<number, Buffer> };
/** `open`: id of a database -> the last open_sequence. */
type Session = { heard: number; open: Map<string, number>; stagings: Map<string, Staging> };

const TTL_MS = Number(process.env.PAGEWIRE_LEASE_TTL_MS ?? 5000), ANSWER_BYTES = 4 << 20;
const LIMITS = { max_message_bytes: 8 << 20, max_read_pages: 1024, max_commit_databases: 126, max_name_bytes: 400, max_open_databases: 65536 };
const { NOT_FOUND, OUT_OF_RANGE, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, FAILED_PRECONDITION } = grpc.status;
const CODES: Record<string, grpc.status> = { DATABASE_NOT_FOUND: NOT_FOUND, VERSION_GONE: OUT_OF_RANGE, INVALID: INVALID_ARGUMENT, LIMIT: RESOURCE_EXHAUSTED };
/** One of the reasons of the protocol, and a text. */
class Refused extends Error { constructor(readonly reason: string, text: string) { super(text); } }
const refuse = (reason: string, text: string): never => { throw new Refused(reason, text); };

const CRCS = Uint32Array.from({ length: 256 }, (_, n) => Array(8).fill(0).reduce((crc) => (crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1), n));
const crc32 = (bytes: Uint8Array) => ~bytes.reduce((crc, byte) => CRCS[(crc ^ byte) & 255] ^ (crc >>> 8), ~0) >>> 0; // node:zlib has it since Node 20.15 only
const incarnation = randomBytes(16);
const sessions = new Map<string, Session>();
const [names, databases] = [new Map<string, Database>(), new Map<string, Database>()];
const hex = (id: Uint8Array) => Buffer.from(id).toString("hex");
const bytes = (id: string) => Buffer.from(id, "hex");
const head = (database: Database) => database.versions[database.versions.length - 1];
const snapshot = (version: Version) => ({ version: version.number, page_size: version.size, page_count: version.count });
/** In the order of the bytes of UTF-8, which is not that of JavaScript. */
const compare = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));
function sweep() { for (const [id, session] of sessions) if (performance.now() - session.heard > TTL_MS) end(id); }
function end(id: string): "end" {
    sessions.get(id)?.open.forEach((_, database) => release(id, databases.get(database)));
    return sessions.delete(id), "end";
}
function release(session: string, database?: Database) { if (database?.holder === session) database.holder = ""; }
function sessionOf(request: Message): Session {
    sweep();
    return sessions.get(hex(request.session_id)) ?? refuse("SESSION_UNKNOWN", "the session is not known");
}
function opened(request: Message, id: Uint8Array = request.database_id): Database {
    const database = sessionOf(request).open.has(hex(id)) ? databases.get(hex(id)) : undefined;
    return database ?? refuse("DATABASE_NOT_OPEN", "the database is not open in this session");
}
function checked(page: Message, size: number): Buffer {
    const right = page.number > 0 && page.number < 2 ** 32 - 1 && [0, size].includes(page.content.length) && crc32(page.content) === page.crc32;
    return !right ? refuse("INVALID", `page ${page.number} is not what was sent`) : page.content.length > 0 ? page.content : Buffer.alloc(size);
}

function openDatabase(request: Message): Message {
    const session = sessionOf(request);
    let found = names.get(request.name);
    if (request.mode !== "OPEN_MODE_CREATE" && (!found || head(found).number === 0)) refuse("DATABASE_NOT_FOUND", "there is no such database");
    const empty = { number: 0, size: 0, count: 0, pages: new Map(), commit: "" };
    found ??= { name: request.name, id: hex(randomBytes(16)), versions: [empty], epoch: 0, holder: "" };
    names.set(found.name, found);
    databases.set(found.id, found);
    session.open.set(found.id, Math.max(session.open.get(found.id) ?? 0, request.open_sequence));
    return { database_id: bytes(found.id), head: snapshot(head(found)) };
}
const beginSnapshot = (request: Message): Message => ({ head: snapshot(head(opened(request))), changes: { all: true } });
function readPages(request: Message): Message {
    const version = opened(request).versions[request.version] ?? refuse("VERSION_GONE", `there is no version ${request.version}`);
    const most = Math.max(1, Math.floor(ANSWER_BYTES / (version.size || 1)));
    const pages = request.pages.slice(0, most).map((number: number) => {
        const page = version.pages.get(number) ?? { content: Buffer.alloc(0), version: 0 };
        return { number, ...page, crc32: crc32(page.content) };
    });
    return { pages };
}
function acquireLease(request: Message): Message {
    const [database, session] = [opened(request), hex(request.session_id)];
    if (database.holder !== "" && database.holder !== session) return { pending: { ahead: 1 } };
    if (database.holder === "" || database.epoch <= request.released_epoch) [database.epoch, database.holder] = [database.epoch + 1, session];
    return { granted: { epoch: database.epoch, head: snapshot(head(database)), changes: { all: true } } };
}
function stagePages(requests: Message[]): Message {
    const header = requests[0]?.header ?? {};
    const [session, database, id] = [sessionOf(header), opened(header), hex(header.staging_id)];
    const staging = session.stagings.get(id) ?? { database, size: header.page_size, pages: new Map() };
    session.stagings.set(id, staging);
    const sent = requests.flatMap((request) => request.pages);
    for (const page of sent) staging.pages.set(page.number, checked(page, staging.size));
    return { page_count: sent.length };
}
function commit(requests: Message[]): Message {
    const [header, finish] = [requests[0]?.header ?? {}, requests[requests.length - 1]?.finish];
    const batches: Message[] = requests.flatMap((request) => request.batches);
    const sums = batches.flatMap((batch) => batch.pages).map((page) => Buffer.from(Uint32Array.of(page.crc32).buffer));
    if (finish?.page_count !== sums.length || finish.crc32 !== crc32(Buffer.concat(sums))) refuse("INVALID", "finish: not what was sent");
    const [session, id] = [sessionOf(header), hex(header.commit_id)];
    const named: [Message, Database][] = header.databases.map((part: Message) => [part, opened(header, part.database_id)]);
    const answer = { committed: { versions: named.map(([part]) => part.base_version + 1) } };
    if (named.every(([part, database]) => database.versions[part.base_version + 1]?.commit === id)) return answer;
    const made: Version[] = [];
    for (const [index, [part, database]] of named.entries()) {
        const base = head(database);
        if (base.number !== part.base_version) return { conflict: { database_index: index, head_version: base.number } };
        if (database.epoch !== part.epoch || database.holder !== hex(header.session_id)) return { lease_lost: { database_index: index, current_epoch: database.epoch } };
        const writes = new Map<number, Buffer>();
        for (const stagingId of part.staging_ids) {
            const staging = session.stagings.get(hex(stagingId));
            const fits = staging?.database === database && staging.size === part.page_size;
            (fits ? staging : refuse("STAGING_UNKNOWN", "the staging is not known")).pages.forEach((content, number) => writes.set(number, content));
        }
        const own = batches.filter((batch) => batch.database_index === index);
        for (const page of own.flatMap((batch) => batch.pages)) writes.set(page.number, checked(page, part.page_size));
        const pages = new Map(base.size === part.page_size ? base.pages : []);
        writes.forEach((content, number) => pages.set(number, { content, version: base.number + 1 }));
        for (const number of [...pages.keys()]) if (number > part.page_count) pages.delete(number);
        made.push({ number: base.number + 1, size: part.page_count > 0 ? part.page_size : 0, count: part.page_count, pages, commit: id });
    }
    named.forEach(([, database], index) => database.versions.push(made[index]));
    named.flatMap(([part]) => part.staging_ids).forEach((stagingId) => session.stagings.delete(hex(stagingId)));
    return answer;
}
function resolveCommit(request: Message): Message {
    const named: [Message, Database][] = request.participants.map((part: Message) => [part, opened(request, part.database_id)]);
    const [part, first] = named[0];
    const made = first.versions[part.base_version + 1];
    if (made?.commit === hex(request.commit_id)) return { committed: { versions: named.map(([p]) => p.base_version + 1) } };
    if (!made && first.epoch === part.epoch) first.epoch += 1;
    return { aborted: { epochs: named.map(([, d]) => (d.holder === hex(request.session_id) ? d.epoch : 0)) } };
}
function listDatabases(request: Message): Message {
    const wanted = [...names.values()].filter((d) => head(d).number > 0 && d.name.startsWith(request.prefix) && compare(d.name, request.after) > 0);
    const entries = wanted.sort((a, b) => compare(a.name, b.name)).map((d) => ({ name: d.name, database_id: bytes(d.id), head: snapshot(head(d)) }));
    return { databases: entries.slice(0, request.limit), more: entries.length > request.limit };
}
function deleteDatabase(request: Message): Message {
    sweep();
    const found = names.get(request.name) ?? refuse("DATABASE_NOT_FOUND", "there is no such database");
    if ([...sessions.values()].some((session) => session.open.has(found.id))) refuse("LIMIT", "the database is open: close it first");
    names.delete(found.name);
    databases.delete(found.id);
    return { database_id: bytes(found.id) };
}

/** A message of the stream of a session: its answer; "end" where the stream ends with it. */
function heard(id: string, request: Message): Message | void | "end" {
    sweep();
    const { hello, heartbeat, release_lease, close_database } = request;
    const resumed = sessions.has(id);
    if (hello) sessions.set(id, sessions.get(id) ?? { heard: 0, open: new Map(), stagings: new Map() });
    const session = sessions.get(id);
    if (!session || request.goodbye) return end(id);
    session.heard = performance.now();
    if (hello) {
        const leases = [...databases.values()].filter((d) => d.holder === id).map((d) => ({ database_id: bytes(d.id), epoch: d.epoch }));
        return { welcome: { protocol_major: 1, incarnation, lease_ttl_ms: TTL_MS, resumed, leases, limits: LIMITS, store: { store_name: "typescript" }, server_name: "minimal_server.ts" } };
    }
    if (heartbeat) return { heartbeat_ack: { sequence: heartbeat.sequence } };
    const database = databases.get(hex((release_lease ?? close_database)?.database_id ?? []));
    if (release_lease && database?.epoch === release_lease.epoch) release(id, database);
    const closed = close_database && database && (session.open.get(database.id) ?? Infinity) <= close_database.open_sequence;
    if (closed && session.open.delete(database.id)) release(id, database);
}
function session(call: grpc.ServerDuplexStream<Message, Message>) {
    let id = "";
    call.on("data", (request: Message) => {
        if (request.hello) id = hex(request.hello.session_id);
        const answer = heard(id, request);
        answer === "end" ? call.end() : answer && call.write(answer);
    });
    call.on("end", () => call.end());
}
function answered(callback: Answer, work: () => Message) {
    try { callback(null, work()); } catch (error) {
        if (!(error instanceof Refused)) throw error;
        const metadata = new grpc.Metadata();
        metadata.set("pagewire-reason", error.reason);
        callback({ code: CODES[error.reason] ?? FAILED_PRECONDITION, details: error.message, metadata });
    }
}
const unary = (work: (request: Message) => Message) => (call: grpc.ServerUnaryCall<Message, Message>, callback: Answer) => answered(callback, () => work(call.request));
const streamed = (work: (requests: Message[]) => Message) => (call: grpc.ServerReadableStream<Message, Message>, callback: Answer) => {
    const requests: Message[] = [];
    call.on("data", (request: Message) => requests.push(request));
    call.on("end", () => answered(callback, () => work(requests)));
};

const options = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true, includeDirs: [process.argv[3] ?? "proto"] };
const protocol: any = grpc.loadPackageDefinition(loadSync("pagewire/v1/pagewire.proto", options));
const server = new grpc.Server({ "grpc.max_receive_message_length": 8 << 20 });
server.addService(protocol.pagewire.v1.PageService.service, {
    Session: session, OpenDatabase: unary(openDatabase), BeginSnapshot: unary(beginSnapshot), ReadPages: unary(readPages),
    AcquireLease: unary(acquireLease), StagePages: streamed(stagePages), Commit: streamed(commit), ResolveCommit: unary(resolveCommit),
    ListDatabases: unary(listDatabases), DeleteDatabase: unary(deleteDatabase),
});
server.bindAsync(`127.0.0.1:${process.argv[2]}`, grpc.ServerCredentials.createInsecure(), (error, port) => console.log(error ?? `listening on 127.0.0.1:${port}`));
