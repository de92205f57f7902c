//! The library, opened at run time, and the table of its functions.

use std::ffi::CStr;
use std::fmt;
use std::os::raw::{c_char, c_double, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where the client library is looked for: first by its name, as the loader of the system does, then where packages put it.
#[cfg(target_os = "macos")]
const PLACES: [&str; 2] = ["libfdb_c.dylib", "/usr/local/lib/libfdb_c.dylib"];
/// Where the client library is looked for: first by its name, as the loader of the system does, then where packages put it.
#[cfg(not(target_os = "macos"))]
const PLACES: [&str; 3] = [
    "libfdb_c.so",
    "/usr/lib/libfdb_c.so",
    "/usr/local/lib/libfdb_c.so",
];

/// The client library cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLoaded {
    /// What was tried.
    pub path: PathBuf,
    /// What the loader of the system said.
    pub why: String,
}

impl fmt::Display for NotLoaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for NotLoaded {}

static LIBRARY: OnceLock<Library> = OnceLock::new();

/// Opens the client library: the one that is named, or else the one that the system has. The first one that opens stays for the life of
/// the process, and later calls answer at once.
pub fn load(named: Option<&Path>) -> Result<(), NotLoaded> {
    if LIBRARY.get().is_some() {
        return Ok(());
    }
    let places = match named {
        Some(path) => vec![path.to_path_buf()],
        None => PLACES.iter().map(PathBuf::from).collect(),
    };
    let mut first = None;
    for path in places {
        match Library::open(&path) {
            Ok(library) => {
                // Somebody else may have been faster: then it is his.
                let _ = LIBRARY.set(library);
                return Ok(());
            }
            Err(why) => {
                first.get_or_insert(NotLoaded { path, why });
            }
        }
    }
    Err(first.unwrap_or_else(|| NotLoaded {
        path: PathBuf::new(),
        why: "no place to look for it".to_owned(),
    }))
}

/// What a function answers that has no library to ask.
pub(crate) trait Absent {
    fn absent() -> Self;
}

impl Absent for () {
    fn absent() -> Self {}
}

impl Absent for c_int {
    fn absent() -> Self {
        // `platform_error`: neither retryable nor maybe committed.
        1500
    }
}

impl Absent for c_double {
    fn absent() -> Self {
        0.0
    }
}

impl Absent for *const c_char {
    fn absent() -> Self {
        const TEXT: &CStr = c"the FoundationDB client library is not loaded";
        TEXT.as_ptr()
    }
}

impl Absent for *mut crate::FDBFuture {
    fn absent() -> Self {
        std::ptr::null_mut()
    }
}

/// Declares the functions, and the table that holds what the library has under their names.
macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $kind:ty),* $(,)?) -> $answer:ty;)*) => {
        /// The functions of the open library.
        pub(crate) struct Functions {
            $($name: Option<unsafe extern "C" fn($($kind),*) -> $answer>,)*
        }

        impl Functions {
            /// # Safety
            /// The library has under each of these names a function of this type, or nothing.
            pub(crate) unsafe fn of(library: &libloading::Library) -> Self {
                Self {
                    // SAFETY: as the caller says.
                    $($name: unsafe { library.get(stringify!($name)) }.ok().map(|found| *found),)*
                }
            }

            /// A function without which nothing works, and which is not there.
            pub(crate) fn missing(&self) -> Option<&'static str> {
                // Removed from the newest client libraries, and only for those who watch a client.
                const OPTIONAL: [&str; 2] = ["fdb_database_get_client_status", "fdb_tenant_create_transaction"];
                $(if self.$name.is_none() && !OPTIONAL.contains(&stringify!($name)) {
                    return Some(stringify!($name));
                })*
                None
            }
        }

        $(
            pub unsafe fn $name($($argument: $kind),*) -> $answer {
                match $crate::library::loaded().and_then(|functions| functions.$name) {
                    // SAFETY: the caller keeps what the manual asks, and the library outlives the process.
                    Some(function) => unsafe { function($($argument),*) },
                    None => <$answer as $crate::library::Absent>::absent(),
                }
            }
        )*
    };
}
pub(crate) use functions;

struct Library {
    functions: crate::Functions,
    /// Never closed: a `static` is not dropped.
    _library: libloading::Library,
}

impl Library {
    fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: opening runs the initialisers of the library, as linking to it would. Whoever names another file than the
        // client library runs what is in that, as with any program that he starts.
        let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
            // What the loader of the system said is below.
            let below = std::error::Error::source(&error).map(ToString::to_string);
            below.unwrap_or_else(|| error.to_string())
        })?;
        // SAFETY: the types are those of the header of API version 730, which `fdb_select_api_version` checks next.
        let functions = unsafe { crate::Functions::of(&library) };
        match functions.missing() {
            Some(name) => Err(format!(
                "is not the client library of FoundationDB 7.3: it has no {name}"
            )),
            None => Ok(Self {
                functions,
                _library: library,
            }),
        }
    }
}

pub(crate) fn loaded() -> Option<&'static crate::Functions> {
    LIBRARY.get().map(|library| &library.functions)
}
