//! A layer over a [`KeyValue`] that repeats what did not get through, where repeating is harmless: everything but a swap, whose
//! repetition is decided on by whoever knows what it means.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::kv::{KeyValue, KeyValueError, Swap, Tag, Unchanged, Value};
use crate::roots::wait;

/// Tries of a call. The waits between them add up to some seconds at most.
const TRIES: u32 = 10;

#[derive(Debug)]
pub(crate) struct Patient(pub Arc<dyn KeyValue>);

/// Repeats the expression while it is not available.
macro_rules! repeated {
    ($call:expr) => {{
        let mut attempt = 0;
        loop {
            match $call.await {
                Err(KeyValueError::Unavailable(_)) if attempt + 1 < TRIES => {
                    attempt += 1;
                    wait(attempt).await;
                }
                answer => break answer,
            }
        }
    }};
}

#[async_trait]
impl KeyValue for Patient {
    fn name(&self) -> String {
        self.0.name()
    }

    fn durable(&self) -> bool {
        self.0.durable()
    }

    async fn get(&self, key: &str) -> Result<Option<Value>, KeyValueError> {
        repeated!(self.0.get(key))
    }

    async fn get_if_changed(
        &self,
        key: &str,
        tag: &Tag,
    ) -> Result<Result<Option<Value>, Unchanged>, KeyValueError> {
        repeated!(self.0.get_if_changed(key, tag))
    }

    async fn get_range(
        &self,
        key: &str,
        offset: u64,
        length: u64,
    ) -> Result<Option<Bytes>, KeyValueError> {
        repeated!(self.0.get_range(key, offset, length))
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<(), KeyValueError> {
        repeated!(self.0.put(key, value.clone()))
    }

    async fn swap(
        &self,
        key: &str,
        expected: Option<&Tag>,
        value: Bytes,
    ) -> Result<Swap, KeyValueError> {
        self.0.swap(key, expected, value).await
    }

    async fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        repeated!(self.0.delete(key))
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, KeyValueError> {
        repeated!(self.0.list(prefix, after, limit))
    }
}
