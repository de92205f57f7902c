//! A backend whose store cannot write atomically, made right by the shadow-paging adapter: a directory with a file for each key. A file
//! is replaced by `rename`, under a lock that makes compare-and-swap of it; nothing is atomic over two files.
//!
//! `cargo run -p pagewire-examples --bin directory-store -- DIRECTORY ADDR:PORT [LEASE_TTL_MS]`; several may run on one directory at once.
#![cfg_attr(rustfmt, rustfmt_skip)] // Wide lines: each call in one look.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io::{Error, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use pagewire_server::{Server, bind_tcp};
use pagewire_shadow::{KeyValue, KeyValueError, ShadowStore, Swap, Tag, Value};

/// Files of values end so: the key "n/61" may be a value and the beginning of the key "n/61/62".
const VALUE: &str = ".value";

#[derive(Clone, Debug)]
struct Directory(PathBuf);

impl Directory {
    fn open(path: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(path.join("new"))?;
        Ok(Self(path.to_owned()))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.0.join("keys").join(format!("{key}{VALUE}"))
    }

    fn read(&self, key: &str) -> Result<Option<Value>, Error> {
        match std::fs::read(self.path(key)) {
            Ok(content) => Ok(Some(Value { tag: tag(&content), content: content.into() })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// K2, K7: whole under another name first, then renamed; on the disk before the answer.
    fn write(&self, key: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.path(key);
        let parent = path.parent().unwrap_or(&self.0);
        std::fs::create_dir_all(parent)?;
        let name = format!("new/{}-{:016x}", std::process::id(), hash(&(key, content)));
        let new = self.0.join(name);
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        // The name, and the folders that came into being for it.
        for folder in parent
            .ancestors()
            .take_while(|folder| folder.starts_with(&self.0))
        {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    /// K3: the lock is the operating system's, so it holds for all processes, and goes with one that dies.
    fn swap(&self, key: &str, expected: Option<&Tag>, content: &[u8]) -> Result<Swap, Error> {
        let lock = File::create(self.0.join("lock"))?;
        lock.lock()?;
        if self.read(key)?.map(|value| value.tag).as_ref() != expected {
            return Ok(Swap::Lost);
        }
        self.write(key, content)?;
        Ok(Swap::Done(tag(content)))
    }

    fn range(&self, key: &str, offset: u64, length: u64) -> Result<Option<Bytes>, Error> {
        let mut file = match File::open(self.path(key)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset))?;
        file.take(length).read_to_end(&mut bytes)?;
        Ok(Some(bytes.into()))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        match std::fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>, Error> {
        let root = self.0.join("keys");
        let first = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut folders = vec![root.join(first)];
        let mut keys = Vec::new();
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let path = entry?.path();
                let text = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy();
                match text.strip_suffix(VALUE) {
                    Some(key) => keys.push(key.to_owned()),
                    None => folders.push(path.clone()),
                }
            }
        }
        keys.retain(|key| key.starts_with(prefix) && key.as_str() > after);
        keys.sort();
        keys.truncate(limit);
        Ok(keys)
    }

    /// Files block; and a disk that fails is not asked again (K8).
    async fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Self, &str) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, KeyValueError> {
        let (this, key) = (self.clone(), key.to_owned());
        let done = tokio::task::spawn_blocking(move || work(&this, &key)).await;
        let done = done.map_err(|error| KeyValueError::Failed(error.to_string()))?;
        done.map_err(|error| match error.kind() {
            ErrorKind::StorageFull => KeyValueError::Full(error.to_string()),
            _ => KeyValueError::Failed(error.to_string()),
        })
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn tag(content: &[u8]) -> Tag {
    Tag(format!("{:016x}-{}", hash(&content), content.len()))
}

#[async_trait]
impl KeyValue for Directory {
    fn name(&self) -> String {
        "directory".to_owned()
    }

    fn durable(&self) -> bool {
        true
    }

    async fn get(&self, key: &str) -> Result<Option<Value>, KeyValueError> {
        self.run(key, |this, key| this.read(key)).await
    }

    async fn get_range(&self, key: &str, at: u64, length: u64) -> Result<Option<Bytes>, KeyValueError> {
        self.run(key, move |this, key| this.range(key, at, length)).await
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<(), KeyValueError> {
        self.run(key, move |this, key| this.write(key, &value)).await
    }

    async fn swap(&self, key: &str, tag: Option<&Tag>, value: Bytes) -> Result<Swap, KeyValueError> {
        let tag = tag.cloned();
        self.run(key, move |this, key| this.swap(key, tag.as_ref(), &value)).await
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        self.run(key, |this, key| this.delete(key)).await
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<String>, KeyValueError> {
        let after = after.to_owned();
        self.run(prefix, move |this, prefix| this.list(prefix, &after, limit)).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, address, ttl @ ..] = &arguments[..] else {
        anyhow::bail!("usage: directory-store DIRECTORY ADDR:PORT [LEASE_TTL_MS]");
    };
    let ttl = ttl.first().map_or(Ok(5000), |ttl| ttl.parse()).context("LEASE_TTL_MS")?;
    let directory = Directory::open(Path::new(directory)).context("the directory")?;
    let store = ShadowStore::open(Arc::new(directory)).await?;
    let (listener, address) = bind_tcp(address).await?;
    let server = Server::builder(Arc::new(store)).lease_ttl(Duration::from_millis(ttl));
    let server = server.build().await?;
    println!("listening on {address}");
    server.serve_tcp(listener, async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
    Ok(())
}
