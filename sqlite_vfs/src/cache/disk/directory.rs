//! The directory of the cache and the files in it, as far as the operating system guards them (Q8).

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use tempfile::NamedTempFile;

/// What the name of a file begins with that is being made.
pub const TEMPORARY: &str = ".making-";

/// Makes the directory if it is missing, and says why it can't be trusted.
pub fn prepare(directory: &Path) -> Result<(), String> {
    let shown = directory.display();
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|error| format!("can't make the directory {shown}: {error}"))?;
    let metadata = std::fs::metadata(directory)
        .map_err(|error| format!("can't look at the directory {shown}: {error}"))?;
    if !is_own(&metadata) {
        return Err(format!(
            "the directory {shown} belongs to another user: choose one of your own"
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(format!(
            "others may write to the directory {shown}: chmod 700 it"
        ));
    }
    Ok(())
}

/// The limit of the process to the size of a file (`ulimit -f`): a write beyond it ends the process by SIGXFSZ.
pub fn largest_file() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    limit.current.unwrap_or(u64::MAX)
}

/// Opens a file of the cache; `None` if it is missing.
pub fn open(path: &Path) -> Result<Option<File>, String> {
    let shown = path.display();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("can't open {shown}: {error}")),
    };
    let metadata = file
        .metadata()
        .map_err(|error| format!("can't look at {shown}: {error}"))?;
    let is_private = metadata.is_file() && is_own(&metadata) && metadata.mode() & 0o077 == 0;
    match is_private {
        true => Ok(Some(file)),
        false => Err(format!(
            "{shown} is not a file that only its owner may read and write: remove it"
        )),
    }
}

/// A new file beside `path`, to be renamed to it.
pub fn temporary(path: &Path) -> Result<NamedTempFile, String> {
    let directory = path.parent().unwrap_or(path);
    tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(|error| format!("can't make a file in {}: {error}", directory.display()))
}

fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
}
