//! Settings: read once, checked, and all errors reported together.
//!
//! Per process from the environment (`PAGEWIRE_*`), per connection from the URI (`?endpoint=...`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use pagewire_proto::{DatabaseName, Invalid, Moment};

use crate::compression::Compression;
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};

/// Where a page server listens if nobody says otherwise.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7240";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_CACHE_BYTES: u64 = 64 << 20;
/// The disk cache: a database of 1 GiB whole, and others beside it.
const DEFAULT_CACHE_DIR_BYTES: u64 = 4 << 30;
/// Below this the pieces in which it makes room are larger than what they make room for.
const MIN_CACHE_DIR_BYTES: u64 = 16 << 20;
/// Pages of a running transaction that are kept in memory; the rest goes to an unlinked temporary file.
const DEFAULT_OVERLAY_BYTES: u64 = 16 << 20;
/// Design, section 4: a COMMIT of up to 64 MiB is one call and nothing else.
const DEFAULT_STAGE_BYTES: u64 = 64 << 20;
/// Longest time for which a bounded reader may go without news: a day.
const MAX_STALENESS_MS: u64 = 86_400_000;

/// Every variable of the environment that the VFS reads.
pub const VARIABLES: &[&str] = &[
    "PAGEWIRE_BATCH_ATOMIC",
    "PAGEWIRE_CACHE_BYTES",
    "PAGEWIRE_CACHE_DIR",
    "PAGEWIRE_CACHE_DIR_BYTES",
    "PAGEWIRE_COMPRESSION",
    "PAGEWIRE_CONSISTENCY",
    "PAGEWIRE_DEFAULT",
    "PAGEWIRE_ENDPOINT",
    "PAGEWIRE_MAX_STALENESS_MS",
    "PAGEWIRE_OVERLAY_BYTES",
    "PAGEWIRE_STAGE_BYTES",
    "PAGEWIRE_SUBSCRIBE",
    "PAGEWIRE_TIMEOUT_MS",
    "PAGEWIRE_TOKEN",
];

/// Which commits a transaction sees that begins now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Every commit that was acknowledged before, on whatever machine (P4).
    Strict,
    /// Every commit that was acknowledged longer ago than this.
    Bounded(Duration),
}

/// Whether a database is subscribed to, so that transactions begin without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeWhen {
    /// When it was asked a few times within a few seconds.
    Auto,
    /// When it is asked for the first time.
    Always,
    /// Not for this connection.
    Never,
}

/// Where the disk cache lies, and how large it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSettings {
    /// Made if it is missing; an absolute path.
    pub directory: PathBuf,
    /// Bytes that all of its files may take together.
    pub bytes: u64,
}

/// Settings of the process, from the environment.
#[derive(Clone, Debug)]
pub struct ProcessSettings {
    /// `PAGEWIRE_ENDPOINT`: the page server, or several of one installation.
    pub endpoint: Endpoint,
    /// `PAGEWIRE_TOKEN`, sent as a bearer token with each call.
    pub token: Option<String>,
    /// `PAGEWIRE_CACHE_BYTES`: bytes of pages cached in memory for each endpoint and token.
    pub cache_bytes: u64,
    /// `PAGEWIRE_COMPRESSION`: whether pages travel compressed, and as deltas.
    pub compression: Compression,
    /// `PAGEWIRE_CACHE_DIR`: the disk cache, if there is to be one.
    pub cache_dir: Option<PathBuf>,
    /// `PAGEWIRE_CACHE_DIR_BYTES`: bytes that its files may take together.
    pub cache_dir_bytes: u64,
    /// `PAGEWIRE_OVERLAY_BYTES`: bytes of a transaction's pages kept in memory for each connection.
    pub overlay_bytes: u64,
    /// `PAGEWIRE_STAGE_BYTES`: bytes of pages beyond which a transaction is uploaded while it runs.
    pub stage_bytes: u64,
    /// `PAGEWIRE_TIMEOUT_MS`: the deadline of each operation.
    pub timeout: Duration,
    /// `PAGEWIRE_BATCH_ATOMIC`: whether the VFS claims SQLITE_IOCAP_BATCH_ATOMIC.
    pub batch_atomic: bool,
    /// `PAGEWIRE_CONSISTENCY` and `PAGEWIRE_MAX_STALENESS_MS`.
    pub consistency: Consistency,
    /// `PAGEWIRE_SUBSCRIBE`: `auto`, `always` or `never`.
    pub subscribe: SubscribeWhen,
}

impl ProcessSettings {
    /// Reads the environment. Wrong values are all named in the one error.
    pub fn from_environment() -> Result<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that reads the environment"
        )]
        Self::read(|name| std::env::var(name).ok())
    }

    /// The disk cache of connections that say nothing of their own.
    pub fn disk(&self) -> Option<DiskSettings> {
        self.disk_in(self.cache_dir.clone())
    }

    fn disk_in(&self, directory: Option<PathBuf>) -> Option<DiskSettings> {
        directory.map(|directory| DiskSettings {
            directory,
            bytes: self.cache_dir_bytes,
        })
    }

    /// Whether the VFS becomes the default; a wrong value counts as unset, since loading must do no harm.
    pub fn default_vfs_wanted() -> bool {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that reads the environment"
        )]
        let value = std::env::var("PAGEWIRE_DEFAULT");
        value
            .ok()
            .and_then(|value| parse_bool(&value))
            .unwrap_or(true)
    }

    /// The same from any other place.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut problems = Vec::new();
        let mut number = |name: &str, default: u64, least: u64, most: u64| match get(name) {
            None => default,
            Some(text) => match text.trim().parse::<u64>() {
                Ok(value) if (least..=most).contains(&value) => value,
                _ => {
                    problems.push(format!(
                        "{name} is {text:?}, must be a whole number from {least} to {most}"
                    ));
                    default
                }
            },
        };
        let cache_bytes = number("PAGEWIRE_CACHE_BYTES", DEFAULT_CACHE_BYTES, 0, 1 << 44);
        let cache_dir_bytes = number(
            "PAGEWIRE_CACHE_DIR_BYTES",
            DEFAULT_CACHE_DIR_BYTES,
            MIN_CACHE_DIR_BYTES,
            1 << 44,
        );
        let overlay_bytes = number("PAGEWIRE_OVERLAY_BYTES", DEFAULT_OVERLAY_BYTES, 0, 1 << 44);
        let stage_bytes = number("PAGEWIRE_STAGE_BYTES", DEFAULT_STAGE_BYTES, 0, 1 << 44);
        let timeout_ms = number(
            "PAGEWIRE_TIMEOUT_MS",
            DEFAULT_TIMEOUT.as_millis() as u64,
            1,
            86_400_000,
        );
        let mut flag = |name: &str| match get(name) {
            None => true,
            Some(text) => parse_bool(&text).unwrap_or_else(|| {
                problems.push(format!("{name} is {text:?}, must be 0 or 1"));
                true
            }),
        };
        // Used when the library is loaded, which a wrong value must not disturb; opening says what is wrong with it.
        flag("PAGEWIRE_DEFAULT");
        let batch_atomic = flag("PAGEWIRE_BATCH_ATOMIC");
        let endpoint = get("PAGEWIRE_ENDPOINT")
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = Endpoint::parse(&endpoint);
        if let Err(problem) = &endpoint {
            problems.push(format!("PAGEWIRE_ENDPOINT {problem}"));
        }
        let cache_dir = read_cache_dir(
            "PAGEWIRE_CACHE_DIR",
            get("PAGEWIRE_CACHE_DIR"),
            None,
            &mut problems,
        );
        let compression = Compression::parse(get("PAGEWIRE_COMPRESSION").as_deref())
            .unwrap_or_else(|problem| {
                problems.push(format!("PAGEWIRE_COMPRESSION {problem}"));
                Compression::Auto
            });
        let token = get("PAGEWIRE_TOKEN").filter(|token| !token.is_empty());
        if let Some(problem) = token.as_deref().and_then(token_problem) {
            problems.push(format!("PAGEWIRE_TOKEN {problem}"));
        }
        let reading = Reading::choose(
            [
                ("PAGEWIRE_CONSISTENCY", get("PAGEWIRE_CONSISTENCY")),
                (
                    "PAGEWIRE_MAX_STALENESS_MS",
                    get("PAGEWIRE_MAX_STALENESS_MS"),
                ),
                ("PAGEWIRE_SUBSCRIBE", get("PAGEWIRE_SUBSCRIBE")),
            ],
            &Reading::DEFAULT,
            &mut problems,
        );
        let (Ok(endpoint), true) = (endpoint, problems.is_empty()) else {
            return Err(Error::new(
                Kind::CantOpen,
                format!("wrong settings: {}", problems.join("; ")),
            ));
        };
        Ok(Self {
            endpoint,
            token,
            cache_bytes,
            compression,
            cache_dir,
            cache_dir_bytes,
            overlay_bytes,
            stage_bytes,
            timeout: Duration::from_millis(timeout_ms),
            batch_atomic,
            consistency: reading.consistency,
            subscribe: reading.subscribe,
        })
    }
}

/// Settings of one connection.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// The page server, or several of one installation.
    pub endpoint: Endpoint,
    /// The credential.
    pub token: Option<String>,
    /// The database.
    pub name: DatabaseName,
    /// Deadline of each operation.
    pub timeout: Duration,
    /// Nothing may be written, and no lease is taken.
    pub read_only: bool,
    /// A missing database may come into being.
    pub create: bool,
    /// SQLite never locks the file: one snapshot for the life of the connection.
    pub unlocked: bool,
    /// Bytes of a transaction's pages kept in memory.
    pub overlay_bytes: u64,
    /// Which commits its transactions see.
    pub consistency: Consistency,
    /// Whether it wants a subscription.
    pub subscribe: SubscribeWhen,
    /// The moment that it looks at; read-only then. `None` for the newest version.
    pub at: Option<Moment>,
    /// Bytes of pages beyond which a transaction is uploaded while it runs.
    pub stage_bytes: u64,
    /// The disk cache. The first connection to an endpoint with a credential decides for all of them.
    pub disk: Option<DiskSettings>,
}

impl ConnectionSettings {
    /// Which client of the process it is a connection of.
    pub fn client(&self) -> (Endpoint, Option<String>) {
        (self.endpoint.clone(), self.token.clone())
    }

    /// The settings of the process, overridden by the parameters of the URI.
    pub fn new(
        process: &ProcessSettings,
        name: &str,
        parameter: impl Fn(&str) -> Option<String>,
        read_only: bool,
        create: bool,
    ) -> Result<Self> {
        let mut problems = Vec::new();
        let endpoint = match parameter("endpoint") {
            None => Ok(process.endpoint.clone()),
            Some(text) => Endpoint::parse(&text),
        };
        if let Err(problem) = &endpoint {
            problems.push(format!("endpoint {problem}"));
        }
        let mut timeout = process.timeout;
        if let Some(text) = parameter("timeout_ms") {
            match text.parse::<u64>() {
                Ok(ms) if (1..=86_400_000).contains(&ms) => timeout = Duration::from_millis(ms),
                _ => problems.push(format!(
                    "timeout_ms is {text:?}, must be a whole number from 1 to 86400000"
                )),
            }
        }
        let is_set =
            |key: &str| parameter(key).is_some_and(|text| parse_bool(&text).unwrap_or(false));
        let unlocked = is_set("immutable") || is_set("nolock");
        let name = DatabaseName::try_from(name).map_err(|Invalid { problem, .. }| {
            Error::new(
                Kind::CantOpen,
                format!("the database name {name:?} {problem}"),
            )
        })?;
        let token = parameter("token").or_else(|| process.token.clone());
        if let Some(problem) = token.as_deref().and_then(token_problem) {
            problems.push(format!("token {problem}"));
        }
        let reading = Reading::choose(
            [
                ("consistency", parameter("consistency")),
                ("max_staleness_ms", parameter("max_staleness_ms")),
                ("subscribe", parameter("subscribe")),
            ],
            &Reading {
                consistency: process.consistency,
                subscribe: process.subscribe,
            },
            &mut problems,
        );
        let cache_dir = read_cache_dir(
            "cache_dir",
            parameter("cache_dir"),
            process.cache_dir.as_deref(),
            &mut problems,
        );
        let mut at = None;
        if let Some(text) = parameter("at").filter(|text| !text.is_empty()) {
            match text.parse::<Moment>() {
                Ok(moment) => at = Some(moment),
                Err(invalid) => problems.push(format!("at {}", invalid.problem)),
            }
        }
        let (Ok(endpoint), true) = (endpoint, problems.is_empty()) else {
            return Err(Error::new(
                Kind::CantOpen,
                format!("database {name}: wrong settings: {}", problems.join("; ")),
            ));
        };
        Ok(Self {
            endpoint,
            token,
            name,
            timeout,
            read_only: read_only || unlocked || at.is_some(),
            create,
            unlocked,
            overlay_bytes: process.overlay_bytes,
            consistency: reading.consistency,
            subscribe: reading.subscribe,
            at,
            stage_bytes: process.stage_bytes,
            disk: process.disk_in(cache_dir),
        })
    }
}

/// How transactions begin: the three settings that belong together.
struct Reading {
    consistency: Consistency,
    subscribe: SubscribeWhen,
}

impl Reading {
    const DEFAULT: Self = Self {
        consistency: Consistency::Strict,
        subscribe: SubscribeWhen::Auto,
    };

    /// The settings given (consistency, largest staleness, subscribe), over defaults.
    fn choose(
        given: [(&str, Option<String>); 3],
        default: &Self,
        problems: &mut Vec<String>,
    ) -> Self {
        let [consistency, staleness, subscribe] = given;
        let by_default = match default.consistency {
            Consistency::Strict => None,
            Consistency::Bounded(most) => Some(most),
        };
        let most = match &staleness.1 {
            None => by_default,
            Some(text) => match text.trim().parse::<u64>() {
                Ok(ms) if (1..=MAX_STALENESS_MS).contains(&ms) => Some(Duration::from_millis(ms)),
                _ => {
                    problems.push(format!(
                        "{} is {text:?}, must be a whole number from 1 to {MAX_STALENESS_MS}",
                        staleness.0
                    ));
                    return Self::DEFAULT;
                }
            },
        };
        let is_bounded = match consistency.1.as_deref().map(str::trim) {
            None => by_default.is_some(),
            Some("strict") => false,
            Some("bounded") => true,
            Some(text) => {
                problems.push(format!(
                    "{} is {text:?}, must be strict or bounded",
                    consistency.0
                ));
                false
            }
        };
        let consistency = match (is_bounded, most) {
            (true, Some(most)) => Consistency::Bounded(most),
            (true, None) => {
                problems.push(format!(
                    "{} is \"bounded\" and {} is not set",
                    consistency.0, staleness.0
                ));
                Consistency::Strict
            }
            (false, _) => {
                if staleness.1.is_some() {
                    problems.push(format!(
                        "{} is set and {} is not \"bounded\"",
                        staleness.0, consistency.0
                    ));
                }
                Consistency::Strict
            }
        };
        let subscribe = match subscribe.1.as_deref().map(str::trim) {
            None => default.subscribe,
            Some("auto") => SubscribeWhen::Auto,
            Some("always") => SubscribeWhen::Always,
            Some("never") => SubscribeWhen::Never,
            Some(text) => {
                problems.push(format!(
                    "{} is {text:?}, must be auto, always or never",
                    subscribe.0
                ));
                default.subscribe
            }
        };
        Self {
            consistency,
            subscribe,
        }
    }
}

/// A directory over a default; an empty one is none.
fn read_cache_dir(
    name: &str,
    given: Option<String>,
    default: Option<&Path>,
    problems: &mut Vec<String>,
) -> Option<PathBuf> {
    let Some(text) = given else {
        return default.map(Path::to_owned);
    };
    if text.is_empty() {
        return None;
    }
    let path = PathBuf::from(&text);
    if !path.is_absolute() || text.contains('\0') {
        // Relative to what, in a process that may change its directory?
        problems.push(format!(
            "{name} is {text:?}, must be an absolute path of a directory, or empty"
        ));
    }
    Some(path)
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Some(true),
        "0" | "off" | "no" | "false" => Some(false),
        _ => None,
    }
}

fn token_problem(token: &str) -> Option<&'static str> {
    let fine = !token.is_empty()
        && token.len() <= 8192
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    (!fine).then_some("must be 1 to 8192 printable ASCII characters without spaces")
}

#[cfg(test)]
mod tests;
