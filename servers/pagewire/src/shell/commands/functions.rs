//! SQL functions of the shell: `readfile(X)` and `writefile(X, Y)`.
//!
//! They work on files of the machine that the shell runs on, never on remote databases.

use rusqlite::functions::FunctionFlags;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Error, Result};

/// Adds the functions to a connection.
pub(in crate::shell) fn register(connection: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("readfile", 1, flags, |context| {
        let Ok(name) = context.get_raw(0).as_str() else {
            return Ok(Value::Null);
        };
        Ok(std::fs::read(name).map_or(Value::Null, Value::Blob))
    })?;
    connection.create_scalar_function("writefile", 2, flags, |context| {
        let Ok(name) = context.get_raw(0).as_str() else {
            return Ok(Value::Null);
        };
        let bytes: Vec<u8> = match context.get_raw(1) {
            ValueRef::Null => Vec::new(),
            ValueRef::Integer(integer) => integer.to_string().into_bytes(),
            ValueRef::Real(real) => real.to_string().into_bytes(),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        };
        std::fs::write(name, &bytes).map_err(|error| {
            Error::UserFunctionError(format!("failed to write file: {name}: {error}").into())
        })?;
        Ok(Value::Integer(
            i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        ))
    })
}
