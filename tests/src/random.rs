//! Randomness that can be repeated: `SEED=n` in the environment, printed by every test that uses it.

/// A generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From `SEED`, or from the clock; prints which.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test that fails is repeated by hand; any seed will do"
    )]
    pub fn start() -> Self {
        let chosen = std::env::var("SEED").ok().map(|seed| seed.parse());
        let seed = chosen.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            Ok(now.expect("a clock").subsec_nanos().into())
        });
        let seed = seed.expect("SEED is a number");
        println!("SEED={seed}");
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// Another generator that this one determines.
    pub fn fork(&mut self) -> Self {
        Self(self.number())
    }
}
