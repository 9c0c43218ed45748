//! Numbers that a seed determines.

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Of its own course, so that what one part draws does not move another's.
    pub(crate) fn branch(&mut self) -> Self {
        Self(self.next())
    }

    /// From 0 to below the bound.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    /// Once in so many.
    pub(crate) fn once_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// `PGLOCKSTEP_SEED`: the one to be replayed.
pub(crate) fn seed() -> Option<u64> {
    let seed = std::env::var("PGLOCKSTEP_SEED").ok()?;
    Some(seed.parse().unwrap())
}

/// `make soak`: everything at full length.
pub(crate) fn is_soak() -> bool {
    std::env::var_os("PGLOCKSTEP_SOAK").is_some()
}

/// Work on one seed after the other for so long, or on the one that is to be replayed. The seed
/// of work that panics is printed. Yields how many there were.
pub(crate) fn for_seeds(time: std::time::Duration, mut work: impl FnMut(Random)) -> u64 {
    struct Named(u64);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("PGLOCKSTEP_SEED={}", self.0);
            }
        }
    }
    let started = std::time::Instant::now();
    let first = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() << 20;
    let replayed = seed();
    let mut seeds = 0;
    loop {
        let named = Named(replayed.unwrap_or(first + seeds));
        work(Random::new(named.0));
        seeds += 1;
        if replayed.is_some() || started.elapsed() >= time {
            return seeds;
        }
    }
}
