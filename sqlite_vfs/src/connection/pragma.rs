//! What a connection answers when it is asked about itself: pragmas and status.

use super::Connection;
use crate::error::Result;

impl Connection {
    /// The answer of a pragma that is ours, or of one that would do harm; `None` for all others.
    pub fn pragma(&mut self, name: &str, value: Option<&str>) -> Result<Option<String>> {
        Ok(match (name, value) {
            ("journal_mode", Some(mode)) => {
                // WAL and OFF are refused quietly, as SQLite does where a mode is not possible: the answer is the mode that stays.
                if ["wal", "off"].contains(&mode.to_ascii_lowercase().as_str()) {
                    return Ok(Some(self.journal_mode.to_owned()));
                }
                let known = ["delete", "truncate", "persist", "memory"];
                if let Some(mode) = known
                    .into_iter()
                    .find(|known| known.eq_ignore_ascii_case(mode))
                {
                    self.journal_mode = mode;
                }
                None
            }
            ("pagewire_at", None) => Some(self.view.describe()),
            ("pagewire_at", Some(text)) => {
                self.look_at(text)?;
                Some(self.view.describe())
            }
            ("pagewire_version", None) => Some(
                self.snapshot()
                    .unwrap_or(self.database.state.head())
                    .version
                    .to_string(),
            ),
            ("pagewire_subscription", None) => Some(self.database.state.subscription().to_owned()),
            ("pagewire_endpoint", None) => Some(self.database.endpoint().to_owned()),
            ("pagewire_database_id", None) => Some(self.database.state.id().to_string()),
            ("pagewire_last_error", None) => Some(
                self.last_error
                    .as_ref()
                    .map(|error| error.message.clone())
                    .unwrap_or_default(),
            ),
            _ => None,
        })
    }

    /// What `pagewire_status` shows of the connection.
    pub fn status(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![
            ("database", self.database.state.name.to_string()),
            ("database_id", self.database.state.id().to_string()),
            ("endpoint", self.database.endpoint().to_owned()),
            (
                "known_version",
                self.database.state.head().version.to_string(),
            ),
            (
                "mode",
                if self.settings.read_only { "ro" } else { "rw" }.to_owned(),
            ),
            ("timeout_ms", self.settings.timeout.as_millis().to_string()),
        ];
        if let Some(snapshot) = self.snapshot() {
            rows.push(("version", snapshot.version.to_string()));
        }
        rows.push(("at", self.view.describe()));
        let subscription = self.database.state.subscription();
        rows.push(("subscription", subscription.to_owned()));
        rows.extend(self.database.session_status());
        rows
    }
}
