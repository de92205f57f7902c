//! What was measured, for people and as JSON.

use std::fmt::Write as _;

use super::rounds::{Ratio, Series, Traffic};

/// How a figure is read.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Microseconds of one operation.
    Microseconds,
    /// So many bytes are moved by one operation.
    Throughput {
        /// Bytes of table.
        bytes: u64,
    },
    /// So many operations are timed together.
    Rate {
        /// Operations.
        operations: u64,
    },
}

/// A floor: a sum of series of the row, each so many times.
pub struct Floor {
    /// For the report.
    pub name: String,
    /// Which series of the row, and how many times.
    pub parts: Vec<(usize, f64)>,
    /// Our figure should be at most this many times the floor.
    pub aim: Option<f64>,
}

/// One workload.
pub struct Row {
    /// What was done.
    pub operation: String,
    /// How the figures are read.
    pub unit: Unit,
    /// Ours first.
    pub series: Vec<Series>,
    /// What ours is compared with.
    pub floors: Vec<Floor>,
    /// Round trips that one operation as it is timed may cost, where the design says so.
    pub calls_aim: Option<f64>,
    /// Megabytes in a second that ours should have at least.
    pub throughput_aim: Option<f64>,
    /// Who knows the calls and bytes of ours.
    pub counted: Counted,
}

/// Where the calls and bytes of an operation are known from.
#[derive(Clone, Copy, Debug)]
pub enum Counted {
    /// The VFS in this process counted them.
    Here,
    /// It ran in another process: they are not known.
    Elsewhere,
    /// Somebody else counted them, or the VFS has no part in it; these are those of one operation.
    Known(Traffic),
}

impl Row {
    fn figure(&self, microseconds: f64) -> String {
        match self.unit {
            Unit::Microseconds if microseconds < 100.0 => format!("{microseconds:.1} us"),
            Unit::Microseconds => format!("{microseconds:.0} us"),
            Unit::Throughput { bytes } => {
                format!("{:.0} MB/s", bytes as f64 / microseconds)
            }
            Unit::Rate { operations } => {
                format!("{:.0}/s", operations as f64 * 1e6 / microseconds)
            }
        }
    }

    fn ratio(&self, floor: &Floor) -> Ratio {
        let parts: Vec<(&Series, f64)> = floor
            .parts
            .iter()
            .map(|(index, times)| (&self.series[*index], *times))
            .collect();
        self.series[0].ratio_to(&parts)
    }

    /// Round trips, bytes sent and bytes received of one operation of ours, where they are known.
    fn traffic(&self) -> Option<[f64; 3]> {
        match self.counted {
            Counted::Here => Some(self.series[0].traffic_per_operation()),
            Counted::Elsewhere => None,
            Counted::Known(Traffic {
                calls,
                sent,
                received,
            }) => Some([calls, sent, received].map(|count| count as f64)),
        }
    }

    /// The row as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let ours = &self.series[0];
        let calls_aim = match self.calls_aim {
            Some(aim) => {
                let is_reached = self.traffic().is_some_and(|[calls, ..]| calls <= aim);
                let word = if is_reached { "reached" } else { "missed" };
                format!(" (aim {aim} {word})")
            }
            None => String::new(),
        };
        let traffic = match self.traffic() {
            None => "calls and bytes are those of another process".to_owned(),
            Some([calls, sent, received]) => {
                format!("{calls:.2} calls{calls_aim}, {sent:.0} bytes sent, {received:.0} received")
            }
        };
        let _ = writeln!(
            text,
            "{}: {traffic}; {} operations",
            self.operation,
            ours.operations()
        );
        if let Some((aim, is_reached)) = self.throughput() {
            let word = if is_reached { "reached" } else { "missed" };
            let _ = writeln!(text, "  aim >= {aim:.0} MB/s {word}");
        }
        for (index, series) in self.series.iter().enumerate() {
            let _ = write!(
                text,
                "  {:<34} p50 {:>10}  p99 {:>10}",
                series.name,
                self.figure(series.quantile_us(0.5)),
                self.figure(series.quantile_us(0.99))
            );
            let alone = self.floors.iter().find(
                |floor| matches!(floor.parts[..], [(part, times)] if part == index && times == 1.0),
            );
            if let Some(floor) = alone {
                let _ = write!(text, "  {}", self.compared(floor));
            }
            text.push('\n');
        }
        for floor in &self.floors {
            if !matches!(floor.parts[..], [(_, times)] if times == 1.0) {
                let _ = writeln!(
                    text,
                    "  {:<34} {:>32}  {}",
                    floor.name,
                    "",
                    self.compared(floor)
                );
            }
        }
        text
    }

    fn compared(&self, floor: &Floor) -> String {
        let Ratio { median, low, high } = self.ratio(floor);
        let mut text = format!(
            "ours is {:>6}x [{} .. {}]",
            times(median),
            times(low),
            times(high)
        );
        if let Some(aim) = floor.aim {
            let word = if median <= aim { "reached" } else { "missed" };
            let _ = write!(text, "  aim <= {aim:.2}x {word}");
        }
        text
    }

    /// The least throughput that is aimed at, and whether ours has it.
    fn throughput(&self) -> Option<(f64, bool)> {
        let (aim, Unit::Throughput { bytes }) = (self.throughput_aim?, self.unit) else {
            return None;
        };
        let ours = bytes as f64 / self.series[0].quantile_us(0.5);
        Some((aim, ours >= aim))
    }

    /// The row as a JSON object.
    pub fn json(&self) -> String {
        let [calls, sent, received] = match self.traffic() {
            None => ["null".to_owned(), "null".to_owned(), "null".to_owned()],
            Some(counts) => counts.map(|count| format!("{count:.3}")),
        };
        let calls_aim = self
            .calls_aim
            .map_or_else(|| "null".to_owned(), |aim| aim.to_string());
        let throughput_aim = self
            .throughput()
            .map_or_else(|| "null".to_owned(), |(aim, _)| aim.to_string());
        let (bytes, together) = match self.unit {
            Unit::Microseconds => ("null".to_owned(), 1),
            Unit::Throughput { bytes } => (bytes.to_string(), 1),
            Unit::Rate { operations } => ("null".to_owned(), operations),
        };
        let series: Vec<String> = self
            .series
            .iter()
            .map(|series| {
                format!(
                    "{{\"name\":{},\"p50_us\":{:.2},\"p99_us\":{:.2},\"operations\":{}}}",
                    quoted(&series.name),
                    series.quantile_us(0.5),
                    series.quantile_us(0.99),
                    series.operations()
                )
            })
            .collect();
        let ratios: Vec<String> = self
            .floors
            .iter()
            .map(|floor| {
                let Ratio { median, low, high } = self.ratio(floor);
                let aim = floor
                    .aim
                    .map_or_else(|| "null".to_owned(), |aim| aim.to_string());
                format!(
                    "{{\"floor\":{},\"median\":{median:.3},\"first_quartile\":{low:.3},\"third_quartile\":{high:.3},\"aim\":{aim}}}",
                    quoted(&floor.name)
                )
            })
            .collect();
        format!(
            "{{\"operation\":{},\"bytes\":{bytes},\"together\":{together},\"calls\":{calls},\"calls_aim\":{calls_aim},\"bytes_sent\":{sent},\"bytes_received\":{received},\"throughput_aim\":{throughput_aim},\"series\":[{}],\"ratios\":[{}]}}",
            quoted(&self.operation),
            series.join(","),
            ratios.join(",")
        )
    }
}

/// A ratio; of a small one what two digits would hide.
fn times(ratio: f64) -> String {
    match ratio < 0.1 {
        true => format!("{ratio:.3}"),
        false => format!("{ratio:.2}"),
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rounds::{Contestant, Shape, alternate};

    #[test]
    fn calls_and_bytes_that_the_vfs_does_not_count_are_shown_as_given_or_not_at_all() {
        let shape = Shape {
            rounds: 1,
            warm_up: 0,
            operations: 1,
        };
        let mut row = Row {
            operation: "a call".to_owned(),
            unit: Unit::Microseconds,
            series: alternate(shape, &mut [Contestant::new("ours", || Ok(()))]).unwrap(),
            floors: Vec::new(),
            calls_aim: None,
            throughput_aim: None,
            counted: Counted::Known(Traffic {
                calls: 2,
                sent: 8192,
                received: 16,
            }),
        };
        let text = row.text();
        assert!(
            text.starts_with("a call: 2.00 calls, 8192 bytes sent, 16 received; 1 operations"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&row.json()).unwrap();
        assert_eq!(json["calls"], 2.0);
        assert_eq!(json["bytes_sent"], 8192.0);
        assert_eq!(json["bytes_received"], 16.0);
        assert!(json["calls_aim"].is_null(), "{json}");
        row.calls_aim = Some(2.0);
        assert!(
            row.text()
                .starts_with("a call: 2.00 calls (aim 2 reached), ")
        );
        row.calls_aim = Some(1.0);
        assert!(
            row.text()
                .starts_with("a call: 2.00 calls (aim 1 missed), ")
        );
        let json: serde_json::Value = serde_json::from_str(&row.json()).unwrap();
        assert_eq!(json["calls_aim"], 1.0);
        row.counted = Counted::Elsewhere;
        let text = row.text();
        assert!(
            text.starts_with("a call: calls and bytes are those of another process"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&row.json()).unwrap();
        assert!(json["calls"].is_null(), "{json}");
    }

    #[test]
    fn a_small_ratio_is_not_shown_as_none() {
        assert_eq!(times(0.0031), "0.003");
        assert_eq!(times(1.2345), "1.23");
    }

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
