//! Measuring side by side: contestants take turns in short rounds, so that a noisy machine disturbs all of them alike.
//!
//! Ratios are made within a round and only then compared over the rounds: what slows a whole round down cancels out.

use std::time::{Duration, Instant};

use pagewire::{CallKind, rpc_count};

/// Round trips and bytes of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Round trips that somebody waited for.
    pub calls: u64,
    /// Bytes of messages sent.
    pub sent: u64,
    /// Bytes of messages received.
    pub received: u64,
}

impl Traffic {
    fn now() -> Self {
        let mut sum = Self::default();
        for kind in CallKind::ALL {
            // Heartbeats go by the clock, not by what is measured.
            if *kind != CallKind::Heartbeat {
                let count = rpc_count(*kind);
                sum.calls += count.count;
                sum.sent += count.bytes_sent;
                sum.received += count.bytes_received;
            }
        }
        sum
    }

    fn add_since(&mut self, before: Self) {
        let now = Self::now();
        self.calls += now.calls - before.calls;
        self.sent += now.sent - before.sent;
        self.received += now.received - before.received;
    }
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How often each contestant has its turn.
    pub rounds: usize,
    /// Operations at the beginning of each turn that do not count.
    pub warm_up: usize,
    /// Operations of a turn that count.
    pub operations: usize,
}

/// What an operation needs before it is timed, and the operation.
pub trait Operation {
    /// Made before each operation, untimed.
    fn prepare(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What is timed.
    fn run(&mut self) -> anyhow::Result<()>;
}

impl<F: FnMut() -> anyhow::Result<()>> Operation for F {
    fn run(&mut self) -> anyhow::Result<()> {
        self()
    }
}

/// An operation with a name.
pub struct Contestant {
    /// For the report.
    pub name: String,
    operation: Box<dyn Operation>,
}

impl Contestant {
    /// A contestant.
    pub fn new(name: impl Into<String>, operation: impl Operation + 'static) -> Self {
        Self {
            name: name.into(),
            operation: Box::new(operation),
        }
    }

    fn turn(&mut self, shape: Shape, series: &mut Series) -> anyhow::Result<()> {
        for _ in 0..shape.warm_up {
            self.operation.prepare()?;
            self.operation.run()?;
        }
        let mut round = Vec::with_capacity(shape.operations);
        for _ in 0..shape.operations {
            self.operation.prepare()?;
            let before = Traffic::now();
            let begun = Instant::now();
            self.operation.run()?;
            round.push(begun.elapsed());
            series.traffic.add_since(before);
        }
        round.sort_unstable();
        series.rounds.push(round);
        Ok(())
    }
}

/// What was measured of one contestant.
#[derive(Clone, Debug)]
pub struct Series {
    /// The contestant's.
    pub name: String,
    /// Sorted within each round.
    rounds: Vec<Vec<Duration>>,
    /// Of all operations that count.
    traffic: Traffic,
}

/// A ratio over the rounds.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// The first quartile.
    pub low: f64,
    /// The third quartile.
    pub high: f64,
}

impl Series {
    /// A quantile over all operations, in microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().flatten().map(microseconds).collect();
        all.sort_unstable_by(f64::total_cmp);
        at(&all, quantile)
    }

    /// How many operations were counted.
    pub fn operations(&self) -> usize {
        self.rounds.iter().map(Vec::len).sum()
    }

    /// Round trips, bytes sent and bytes received of one operation, on average.
    pub fn traffic_per_operation(&self) -> [f64; 3] {
        let operations = self.operations().max(1) as f64;
        [self.traffic.calls, self.traffic.sent, self.traffic.received]
            .map(|count| count as f64 / operations)
    }

    /// By how much this is slower than the floor, which is the sum of some series, each taken so many times.
    pub fn ratio_to(&self, floor: &[(&Series, f64)]) -> Ratio {
        let mut ratios: Vec<f64> = (0..self.rounds.len())
            .map(|round| {
                let below: f64 = floor
                    .iter()
                    .map(|(series, times)| series.median_of_round(round) * times)
                    .sum();
                self.median_of_round(round) / below.max(f64::MIN_POSITIVE)
            })
            .collect();
        ratios.sort_unstable_by(f64::total_cmp);
        Ratio {
            median: at(&ratios, 0.5),
            low: at(&ratios, 0.25),
            high: at(&ratios, 0.75),
        }
    }

    fn median_of_round(&self, round: usize) -> f64 {
        let sorted: Vec<f64> = self.rounds[round].iter().map(microseconds).collect();
        at(&sorted, 0.5)
    }
}

/// Lets the contestants take turns; each round begins with another one.
pub fn alternate(shape: Shape, contestants: &mut [Contestant]) -> anyhow::Result<Vec<Series>> {
    let mut all: Vec<Series> = contestants
        .iter()
        .map(|contestant| Series {
            name: contestant.name.clone(),
            rounds: Vec::with_capacity(shape.rounds),
            traffic: Traffic::default(),
        })
        .collect();
    let count = contestants.len();
    for round in 0..shape.rounds {
        for turn in 0..count {
            let who = (round + turn) % count;
            contestants[who].turn(shape, &mut all[who])?;
        }
    }
    Ok(all)
}

/// What one operation sends and receives, measured before the rounds so that the floors can carry the same.
pub fn traffic_of(operation: &mut dyn Operation, times: u64) -> anyhow::Result<Traffic> {
    let mut sum = Traffic::default();
    for _ in 0..times {
        operation.prepare()?;
        let before = Traffic::now();
        operation.run()?;
        sum.add_since(before);
    }
    Ok(Traffic {
        calls: sum.calls.div_ceil(times),
        sent: sum.sent / times,
        received: sum.received / times,
    })
}

fn microseconds(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn at(sorted: &[f64], quantile: f64) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        count => sorted[((count - 1) as f64 * quantile).round() as usize],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rounds: &[&[u64]]) -> Series {
        Series {
            name: String::new(),
            rounds: rounds
                .iter()
                .map(|round| round.iter().copied().map(Duration::from_micros).collect())
                .collect(),
            traffic: Traffic::default(),
        }
    }

    #[test]
    fn a_round_that_is_slow_for_everybody_does_not_move_the_ratio() {
        let ours = series(&[&[20, 20, 20], &[200, 200, 900], &[20, 20, 30]]);
        let floor = series(&[&[10, 10, 10], &[100, 100, 100], &[10, 10, 10]]);
        let ratio = ours.ratio_to(&[(&floor, 1.0)]);
        assert!((ratio.median - 2.0).abs() < 1e-6, "{ratio:?}");
        assert!((ratio.high - 2.0).abs() < 1e-6, "{ratio:?}");
    }

    #[test]
    fn a_floor_may_be_a_sum() {
        let ours = series(&[&[90]]);
        let (echo, sync) = (series(&[&[10]]), series(&[&[40]]));
        let ratio = ours.ratio_to(&[(&echo, 2.0), (&sync, 1.0)]);
        assert!((ratio.median - 1.5).abs() < 1e-6, "{ratio:?}");
    }

    #[test]
    fn quantiles_are_over_all_rounds() {
        let all = series(&[&[1, 2], &[3, 4, 5]]);
        assert!((all.quantile_us(0.5) - 3.0).abs() < 1e-6);
        assert!((all.quantile_us(1.0) - 5.0).abs() < 1e-6);
        assert_eq!(all.operations(), 5);
    }

    #[test]
    fn contestants_alternate_and_only_operations_that_count_are_kept() {
        let shape = Shape {
            rounds: 3,
            warm_up: 2,
            operations: 4,
        };
        let turns = std::rc::Rc::new(std::cell::RefCell::new(String::new()));
        let mut contestants: Vec<_> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let turns = std::rc::Rc::clone(&turns);
                Contestant::new(name, move || {
                    turns.borrow_mut().push_str(name);
                    Ok(())
                })
            })
            .collect();
        let measured = alternate(shape, &mut contestants).unwrap();
        assert_eq!(
            *turns.borrow(),
            "aaaaaabbbbbb".to_owned() + "bbbbbbaaaaaa" + "aaaaaabbbbbb"
        );
        assert!(measured.iter().all(|series| series.operations() == 12));
    }
}
