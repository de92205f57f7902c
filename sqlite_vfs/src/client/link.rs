//! How long the way to the server is and how much goes through it: what a window of reads in flight has to cover.
//!
//! The rate is sampled as BBR does it (draft-cardwell-iccrg-bbr-congestion-control, 4.1.1): what arrived between the sending of
//! a call and its answer, over that time. A sample is too low where too little was asked for, and hardly ever too high, so the
//! highest of late counts; a round trip is too long where something waited, so the shortest of late counts.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a sample counts: links change, and so does what else goes over them.
const SAMPLE_LIFE: Duration = Duration::from_secs(10);

/// See the file's header.
#[derive(Default)]
pub struct Link(Mutex<Samples>);

#[derive(Default)]
struct Samples {
    arrived_bytes: u64,
    shortest: Option<(Duration, Instant)>,
    highest: Option<(f64, Instant)>,
}

/// The sending of a call.
pub struct Sent {
    at: Instant,
    arrived_bytes: u64,
}

impl Link {
    /// A call goes out.
    pub fn sent(&self, at: Instant) -> Sent {
        Sent {
            at,
            arrived_bytes: self.0.lock().arrived_bytes,
        }
    }

    /// Its answer has come, with so many bytes of pages.
    pub fn arrived(&self, sent: &Sent, bytes: u64, now: Instant) {
        let took = now
            .saturating_duration_since(sent.at)
            .max(Duration::from_micros(1));
        let mut samples = self.0.lock();
        samples.arrived_bytes += bytes;
        let rate = (samples.arrived_bytes - sent.arrived_bytes) as f64 / took.as_secs_f64();
        let is_late = |since: Instant| now.saturating_duration_since(since) > SAMPLE_LIFE;
        if samples
            .shortest
            .is_none_or(|(shortest, since)| took < shortest || is_late(since))
        {
            samples.shortest = Some((took, now));
        }
        if samples
            .highest
            .is_none_or(|(highest, since)| rate > highest || is_late(since))
        {
            samples.highest = Some((rate, now));
        }
    }

    /// The bandwidth-delay product in bytes; 0 as long as nothing is known.
    pub fn product(&self) -> u64 {
        let samples = self.0.lock();
        match (samples.shortest, samples.highest) {
            (Some((shortest, _)), Some((highest, _))) => (highest * shortest.as_secs_f64()) as u64,
            _ => 0,
        }
    }

    /// The shortest round trip of late; zero as long as nothing is known.
    pub fn round_trip(&self) -> Duration {
        let shortest = self.0.lock().shortest;
        shortest.map_or(Duration::ZERO, |(shortest, _)| shortest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_flight_together_show_the_rate_of_all_of_them() {
        let link = Link::default();
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        assert_eq!((link.product(), link.round_trip()), (0, Duration::ZERO));
        let calls: Vec<_> = (0..4).map(|_| link.sent(begin)).collect();
        for (call, ms) in calls.iter().zip([20, 21, 22, 23]) {
            link.arrived(call, 1_000_000, after(ms));
        }
        // Four megabytes in 23 ms, over a round trip of 20.
        assert_eq!(link.round_trip(), Duration::from_millis(20));
        let product = link.product();
        assert!((3_400_000..3_600_000).contains(&product), "{product}");
    }

    #[test]
    fn old_samples_are_forgotten() {
        let link = Link::default();
        let begin = Instant::now();
        link.arrived(
            &link.sent(begin),
            1_000_000,
            begin + Duration::from_millis(1),
        );
        let later = begin + Duration::from_secs(11);
        link.arrived(&link.sent(later), 1_000, later + Duration::from_millis(100));
        assert_eq!(link.product(), 1_000);
    }
}
