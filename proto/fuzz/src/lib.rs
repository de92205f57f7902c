//! What the targets have in common: a value that a receiver has accepted survives being sent on.

use std::fmt::Debug;

use pagewire_proto::{Invalid, PageSize};
use prost::Message;

/// All page sizes, smallest first.
pub fn page_sizes() -> Vec<PageSize> {
    (9..=16)
        .filter_map(|power| PageSize::try_from(1u32 << power).ok())
        .collect()
}

/// Bytes -> message -> value; a value that is valid gives the same value when it is sent, and a refusal says why.
pub fn survives<M, V>(
    bytes: &[u8],
    receive: impl Fn(M) -> Result<V, Invalid>,
    send: impl Fn(&V) -> M,
) -> Option<V>
where
    M: Message + Default,
    V: PartialEq + Debug,
{
    let value = match receive(M::decode(bytes).ok()?) {
        Ok(value) => value,
        Err(invalid) => {
            assert!(!invalid.field.is_empty() && !invalid.problem.is_empty());
            return None;
        }
    };
    let sent = send(&value).encode_to_vec();
    let again = M::decode(&sent[..]).expect("what was encoded decodes");
    assert_eq!(receive(again).as_ref(), Ok(&value));
    Some(value)
}
