//! What the adapter stands on: trait [`KeyValue`] and its contract.
//!
//! # Contract
//! Written so that an object store with conditional writes keeps it as it is; nothing is asked of two keys together.
//!
//! * **K1** `get`, `get_range` and `list` see every put, swap and delete that was answered before they were called.
//! * **K2** A value is whole or not there: nobody ever reads a part of one, also after a crash.
//! * **K3** `swap` compares the tag of the key and replaces its value in one step, for all processes. A tag stands for a value:
//!   two different values that a key had never have the same tag (a hash of the content will do).
//! * **K4** An error of `put`, `swap` or `delete` says nothing: it may have happened, or happen later, once or twice, but no
//!   later than an hour after the call was given up. [`KeyValueError::Full`] says that it did not and will not.
//! * **K5** `list` answers the keys that begin with the prefix and are greater than `after`, in byte order, at most `limit`; fewer
//!   only where there are no more.
//! * **K6** Deleting a key that is not there succeeds.
//! * **K7** What `put` and `swap` answered survives what [`KeyValue::durable`] says.
//! * **K8** [`KeyValueError::Failed`] is an error of the medium after which it is not trusted before it is opened anew; anything
//!   that passes (a connection, a timeout, "slow down") is [`KeyValueError::Unavailable`].
//!
//! Keys have `0-9`, `a-z`, `-` and `/`, at most 900 bytes, at most 128 between two slashes. A key may be the beginning of another one
//! ("n/61" and "n/61/62"). Values have up to 9 MiB, those that are swapped some hundred KiB.
//!
//! What the adapter does with it: `put` is called with a new key each time, with one value; `delete` only for keys that nobody
//! will put or swap again; `swap` never writes a value that the key had before.

use async_trait::async_trait;
use bytes::Bytes;

/// Stands for the value of a key, as an ETag does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub String);

/// A value with its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What was put or swapped in.
    pub content: Bytes,
    /// To be named by the next swap.
    pub tag: Tag,
}

/// How a swap ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The value is the new one; its tag.
    Done(Tag),
    /// The key had another tag; nothing changed.
    Lost,
}

/// Why it could not be done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyValueError {
    /// Not now; may have happened (K4).
    #[error("{0}")]
    Unavailable(String),
    /// No room: nothing happened.
    #[error("the store is full: {0}")]
    Full(String),
    /// The medium failed (K8).
    #[error("{0}")]
    Failed(String),
}

/// A store that changes one key at a time. See the contract at the top of this file.
#[async_trait]
pub trait KeyValue: Send + Sync + std::fmt::Debug + 'static {
    /// For people: `s3`, `directory`, ...
    fn name(&self) -> String;

    /// Whether what was answered survives the process and the machine (K7).
    fn durable(&self) -> bool;

    /// The value of a key.
    async fn get(&self, key: &str) -> Result<Option<Value>, KeyValueError>;

    /// The value of a key unless its tag is this one, which the inner error says.
    ///
    /// To be overridden where the store can save the bytes (`If-None-Match`).
    async fn get_if_changed(
        &self,
        key: &str,
        tag: &Tag,
    ) -> Result<Result<Option<Value>, Unchanged>, KeyValueError> {
        let value = self.get(key).await?;
        Ok(match value {
            Some(value) if value.tag == *tag => Err(Unchanged),
            value => Ok(value),
        })
    }

    /// Bytes of a value that was `put`, fewer where it ends before.
    async fn get_range(
        &self,
        key: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Bytes>, KeyValueError>;

    /// Gives a new key its value.
    async fn put(&self, key: &str, value: Bytes) -> Result<(), KeyValueError>;

    /// Replaces the value with this tag; `None`: only where there is no value (K3).
    async fn swap(
        &self,
        key: &str,
        expected: Option<&Tag>,
        value: Bytes,
    ) -> Result<Swap, KeyValueError>;

    /// Removes a key (K6).
    async fn delete(&self, key: &str) -> Result<(), KeyValueError>;

    /// Keys in byte order (K5).
    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, KeyValueError>;
}

/// The value has the tag that was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unchanged;
