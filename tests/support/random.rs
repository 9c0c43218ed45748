//! Numbers that a seed determines.

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).unwrap()
    }
}

/// `PGLOCKSTEP_SEED`, or a new one.
pub fn seed() -> u64 {
    let clock = || {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap();
        u64::from(since.subsec_nanos()) ^ since.as_secs()
    };
    let wanted = std::env::var("PGLOCKSTEP_SEED");
    wanted.map_or_else(|_| clock(), |n| n.parse().unwrap())
}

/// `make soak`: everything at full length.
pub fn is_soak() -> bool {
    std::env::var_os("PGLOCKSTEP_SOAK").is_some()
}
