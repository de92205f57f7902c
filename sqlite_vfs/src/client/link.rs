//! How long the way to the server is and how much goes through it: what a window of reads in flight has to cover.
//!
//! The rate is sampled as BBR does it (draft-cardwell-iccrg-bbr-congestion-control, 4.1.1): what arrived between the last arrival before
//! a call was sent (its sending, if nothing was under way) and its answer, over that time. A sample is too low where too little was asked for,
//! and never much too high (L3), so the highest of late counts; a round trip is too long where something waited, so the shortest of late counts.
//!
//! * **L1** While the rate rises it is what was asked for, not what the way carries: a window may be larger then, or each step of its growth
//!   would be a round trip of its own. A rate that has not risen by a quarter for two round trips rises no more.
//! * **L2** An old round trip is replaced by a longer one only by a call that was alone: nothing else was under way when it was sent, nor when its
//!   answer came, nor came in between. Behind a window of reads on a slow way, or beside them, every call is long, and a window that follows that makes the
//!   next one longer. So a way that becomes longer in the middle of a scan is believed when the scan has come to a pause.
//! * **L3** Calls share the way, so they come in bunches: what arrives after a call was sent may have been on its way for long. All of it was sent
//!   after the oldest call that was under way then, or with it, and the first of that took a round trip: so the time of a sample is at least that since
//!   the oldest was sent, less the shortest round trip. In a way that is full, call behind call, both times are the same. A call that hangs makes the
//!   samples beside it too low, and windows small; that ends with the call.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a sample counts: links change, and so does what else goes over them.
const SAMPLE_LIFE: Duration = Duration::from_secs(10);

/// A window is never held below this, whatever the link seems to need: what is known of the link grows with the window.
const LEAST_WINDOW_BYTES: u64 = 1 << 20;
/// Bytes in a second that nearly every link to a server carries: 100 Mbit/s.
const MODEST_RATE: f64 = 12.5e6;
/// Bandwidth-delay products in a window.
const PRODUCTS: u64 = 2;
/// The same while the rate rises (L1): as much as a window grows at a time.
const RISING_PRODUCTS: u64 = 4;
/// What a rate has to rise by.
const RISE: f64 = 1.25;

/// See the file's header.
#[derive(Default)]
pub struct Link(Arc<Mutex<Samples>>);

#[derive(Default)]
struct Samples {
    arrived_bytes: u64,
    /// Calls that have been sent, and have neither come nor failed: when, and which of all.
    under_way: BTreeSet<(Instant, u64)>,
    calls: u64,
    /// The last arrival, or the sending of the first call since nothing was under way.
    last_mark: Option<Instant>,
    last_arrival: Option<Instant>,
    shortest: Option<(Duration, Instant)>,
    highest: Option<(f64, Instant)>,
    /// The rate after the last rise, and when that was.
    risen: Option<(f64, Instant)>,
}

/// A call that is under way, until this is dropped.
pub struct Sent {
    samples: Arc<Mutex<Samples>>,
    at: Instant,
    /// Which of all calls.
    call: u64,
    /// Where the time of its sample of the rate begins.
    since: Instant,
    /// When the oldest call was sent that was under way then (L3).
    oldest: Instant,
    arrived_bytes: u64,
    was_alone: bool,
}

impl Drop for Sent {
    fn drop(&mut self) {
        let sent = (self.at, self.call);
        self.samples.lock().under_way.remove(&sent);
    }
}

impl Link {
    /// A call goes out.
    pub fn sent(&self, at: Instant) -> Sent {
        let mut samples = self.0.lock();
        let was_alone = samples.under_way.is_empty();
        samples.calls += 1;
        let call = samples.calls;
        samples.under_way.insert((at, call));
        let oldest = samples.under_way.first().map_or(at, |(oldest, _)| *oldest);
        let since = match samples.last_mark {
            Some(mark) if !was_alone => mark,
            _ => at,
        };
        samples.last_mark = Some(since);
        Sent {
            samples: Arc::clone(&self.0),
            at,
            call,
            since,
            oldest,
            arrived_bytes: samples.arrived_bytes,
            was_alone,
        }
    }

    /// Its answer has come, with so many bytes of pages.
    pub fn arrived(&self, sent: &Sent, bytes: u64, now: Instant) {
        let since = |then: Instant| {
            let duration = now.saturating_duration_since(then);
            duration.max(Duration::from_micros(1))
        };
        let took = since(sent.at);
        let mut samples = self.0.lock();
        // L2.
        let was_alone = sent.was_alone
            && samples.under_way.len() == 1
            && samples.arrived_bytes == sent.arrived_bytes;
        samples.arrived_bytes += bytes;
        samples.last_arrival = Some(now);
        samples.last_mark = Some(now);
        let arrived = samples.arrived_bytes - sent.arrived_bytes;
        let is_late = |since: Instant| now.saturating_duration_since(since) > SAMPLE_LIFE;
        if samples
            .shortest
            .is_none_or(|(shortest, since)| took < shortest || (was_alone && is_late(since)))
        {
            samples.shortest = Some((took, now));
        }
        // L3.
        let shortest = samples.shortest.map_or(Duration::ZERO, |(took, _)| took);
        let carried = since(sent.oldest).saturating_sub(shortest);
        let rate = arrived as f64 / since(sent.since).max(carried).as_secs_f64();
        if samples
            .highest
            .is_none_or(|(highest, since)| rate > highest || is_late(since))
        {
            samples.highest = Some((rate, now));
        }
        if samples
            .risen
            .is_none_or(|(before, since)| rate > RISE * before || is_late(since))
        {
            samples.risen = Some((rate, now));
        }
    }

    /// The largest window of a stream in bytes, where so many may lie ahead (R4 of `prefetch/mod.rs`).
    pub fn window(&self, ahead_limit: u64) -> u64 {
        let samples = self.0.lock();
        let products = match samples.rises() {
            true => RISING_PRODUCTS,
            false => PRODUCTS,
        };
        (products * samples.product())
            .max(LEAST_WINDOW_BYTES)
            .min(ahead_limit / 4 * 3)
    }

    /// Its first window: what comes in the time of a round trip anyway.
    pub fn first_window(&self) -> u64 {
        (self.round_trip().as_secs_f64() * MODEST_RATE) as u64
    }

    /// The shortest round trip of late; zero as long as nothing is known.
    pub fn round_trip(&self) -> Duration {
        let shortest = self.0.lock().shortest;
        shortest.map_or(Duration::ZERO, |(shortest, _)| shortest)
    }
}

impl Samples {
    /// The bandwidth-delay product in bytes; 0 as long as nothing is known.
    fn product(&self) -> u64 {
        match (self.shortest, self.highest) {
            (Some((shortest, _)), Some((highest, _))) => (highest * shortest.as_secs_f64()) as u64,
            _ => 0,
        }
    }

    /// L1. By the clock of the last answer: what comes of it is asked for soon after one.
    fn rises(&self) -> bool {
        match (self.risen, self.last_arrival, self.shortest) {
            (Some((_, since)), Some(last), Some((shortest, _))) => {
                last.saturating_duration_since(since) <= 2 * shortest
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(link: &Link) -> u64 {
        link.0.lock().product()
    }

    #[test]
    fn calls_in_flight_together_show_the_rate_of_all_of_them() {
        let link = Link::default();
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        assert_eq!((product(&link), link.round_trip()), (0, Duration::ZERO));
        let calls: Vec<_> = (0..4).map(|_| link.sent(begin)).collect();
        for (call, ms) in calls.iter().zip([20, 21, 22, 23]) {
            link.arrived(call, 1_000_000, after(ms));
        }
        // Four megabytes in 23 ms, over a round trip of 20.
        assert_eq!(link.round_trip(), Duration::from_millis(20));
        let product = product(&link);
        assert!((3_400_000..3_600_000).contains(&product), "{product}");
    }

    /// Bug: a small call that is sent shortly before others arrive that were sent long before it saw all of them in its own short time.
    #[test]
    fn a_small_call_beside_large_ones_shows_no_more_than_the_rate_of_all() {
        let link = Link::default();
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        let large = [link.sent(begin), link.sent(begin)];
        let small = link.sent(after(780));
        for (call, ms) in large.iter().zip([800, 870]) {
            link.arrived(call, 500_000, after(ms));
        }
        link.arrived(&small, 4_096, after(880));
        let rate = link.0.lock().highest.expect("a sample").0;
        assert!(rate < 2e6, "{rate}");
    }

    /// Bug: a small call that was sent between the arrivals of two that had shared the way saw the second of them in its own short time. Cause: that
    /// began with the arrival of the first. The rate was taken for twenty-five times what it was, and a window for as much.
    #[test]
    fn l3_a_small_call_between_the_arrivals_of_large_ones_shows_no_more_than_the_rate_of_all() {
        let link = Link::default();
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        link.arrived(&link.sent(begin), 4_096, after(20));
        let large = [link.sent(after(100)), link.sent(after(100))];
        link.arrived(&large[0], 500_000, after(1090));
        let small = link.sent(after(1091));
        link.arrived(&large[1], 500_000, after(1100));
        link.arrived(&small, 4_096, after(1111));
        let rate = link.0.lock().highest.expect("a sample").0;
        assert!(rate < 1.05e6, "{rate}");
    }

    /// Answers that share a way, each with the same part of it, in time that is only counted; a small call follows each arrival. Returns the rate that
    /// was seen last, and the most bytes on the way.
    fn sharing(rate: f64, round_trip: Duration, steps: u32) -> (f64, u64) {
        const STEP: Duration = Duration::from_micros(100);
        const LARGE: u64 = 512 << 10;
        const SMALL: u64 = 4 << 10;
        let link = Link::default();
        let begin = Instant::now();
        let delay = (round_trip.as_micros() / STEP.as_micros()) as u32;
        // The step in which it is sent, its bytes, and those that are left.
        let mut calls = vec![(0, link.sent(begin), SMALL, SMALL as f64)];
        let mut most = 0;
        for step in 0..steps {
            let now = begin + step * STEP;
            let is_served = |at: u32| at + delay <= step;
            let served = calls.iter().filter(|(at, ..)| is_served(*at)).count();
            let part = rate * STEP.as_secs_f64() / served.max(1) as f64;
            for (.., left) in calls.iter_mut().filter(|(at, ..)| is_served(*at)) {
                *left -= part;
            }
            while let Some(place) = calls.iter().position(|(.., left)| *left <= 0.0) {
                let (_, sent, bytes, _) = calls.remove(place);
                link.arrived(&sent, bytes, now);
                drop(sent);
                if bytes == LARGE {
                    calls.push((step, link.sent(now), SMALL, SMALL as f64));
                }
            }
            let on_the_way =
                |calls: &[(u32, Sent, u64, f64)]| calls.iter().map(|call| call.2).sum();
            let mut bytes: u64 = on_the_way(&calls);
            while step > 2 * delay && bytes + LARGE <= link.window(u64::MAX) {
                calls.push((step, link.sent(now), LARGE, LARGE as f64));
                bytes += LARGE;
            }
            most = most.max(bytes);
        }
        let rate = link.0.lock().highest.expect("a sample").0;
        (rate, most)
    }

    #[test]
    fn l3_beside_small_calls_a_window_of_calls_that_share_the_way_is_what_the_way_needs() {
        for (rate, ms) in [
            (1.25e6, 20),
            (12.5e6, 20),
            (12.5e6, 100),
            (125e6, 20),
            (125e6, 100),
        ] {
            let product = rate * ms as f64 / 1e3;
            let (seen, most) = sharing(rate, Duration::from_millis(ms), 40_000);
            println!(
                "{rate} B/s, {ms} ms: {seen:.0} seen, {most} of {product:.0} bytes on the way"
            );
            assert!(seen <= 1.1 * rate && seen >= 0.7 * rate, "{seen} of {rate}");
            let least = LEAST_WINDOW_BYTES as f64;
            assert!(
                most as f64 <= least.max(4.4 * product),
                "{most} for {product}"
            );
        }
    }

    /// Bug: of two calls that share the way, and end together, the next pair's first had nothing arrive meanwhile, and was taken for one that was alone.
    #[test]
    fn l2_a_call_that_shares_the_way_says_nothing_of_its_length() {
        let link = Link::default();
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        link.arrived(&link.sent(begin), 4096, after(20));
        for turn in 0..20 {
            let (sent, came) = (after(100 + turn * 900), after(950 + turn * 900));
            let pair = [link.sent(sent), link.sent(sent)];
            for call in &pair {
                link.arrived(call, 500_000, came);
            }
        }
        assert_eq!(link.round_trip(), Duration::from_millis(20));
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
        assert_eq!(product(&link), 1_000);
    }

    /// A steady stream of calls, each sent when one has come, `wide` of them in flight; the window after some of them.
    fn steadily(link: &Link, begin: Instant, wide: u32, each: Duration, calls: u32) -> u64 {
        let at = |turn: u32| begin + turn * each;
        let mut under_way: std::collections::VecDeque<_> =
            (0..wide).map(|turn| link.sent(at(turn))).collect();
        for turn in wide..calls {
            let call = under_way.pop_front().expect("a call");
            link.arrived(&call, 100_000, at(turn));
            under_way.push_back(link.sent(at(turn)));
        }
        link.window(u64::MAX)
    }

    #[test]
    fn l1_a_window_is_larger_while_the_rate_rises() {
        let link = Link::default();
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        // 100 kB, 400 kB and 1.6 MB in a round trip of 20 ms.
        for (turn, kilobytes) in [(0, 100), (1, 400), (2, 1600)] {
            let sent = link.sent(after(20 * turn));
            link.arrived(&sent, kilobytes * 1000, after(20 * (turn + 1)));
        }
        assert_eq!(product(&link), 1_600_000);
        assert_eq!(link.window(u64::MAX), 6_400_000);
        assert_eq!(link.window(4_000_000), 3_000_000);
        // The same once more, and a little more: two round trips later it does not rise.
        for (turn, kilobytes) in [(3, 1600), (4, 1700), (5, 1600)] {
            let sent = link.sent(after(20 * turn));
            link.arrived(&sent, kilobytes * 1000, after(20 * (turn + 1)));
        }
        assert_eq!(product(&link), 1_700_000);
        assert_eq!(link.window(u64::MAX), 3_400_000);
    }

    /// Bug: ten seconds into a scan the length of the way was taken from a call that had waited behind a whole window. The window grew by it, and
    /// the next one was taken from that: at 10 Mbit/s there were 8 MB on the way in the end, of which every other call had to wait for seven seconds.
    #[test]
    fn l2_a_slow_way_is_not_taken_for_a_long_one() {
        let link = Link::default();
        let begin = Instant::now();
        let first = link.sent(begin);
        link.arrived(&first, 4096, begin + Duration::from_millis(20));
        drop(first);
        // 100 kB in 80 ms, ten of them in flight: 800 ms for each.
        let each = Duration::from_millis(80);
        let window = steadily(&link, begin, 10, each, 1000);
        assert_eq!(link.round_trip(), Duration::from_millis(20));
        assert_eq!(window, LEAST_WINDOW_BYTES);
        // With nothing else on the way a longer round trip is believed.
        let later = begin + 1100 * each;
        let alone = link.sent(later);
        link.arrived(&alone, 4096, later + Duration::from_millis(30));
        assert_eq!(link.round_trip(), Duration::from_millis(30));
    }
}
