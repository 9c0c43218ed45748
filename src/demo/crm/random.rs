//! A small generator of numbers that a seed determines, so that a run can be repeated.

/// `SplitMix64` (Steele, Lea, Flood 2014): a counter and a mixer; any seed is a good one.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0. The bias of the remainder does not matter here.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        let below = self.next() % u64::from(bound.max(1));
        u32::try_from(below).unwrap_or(u32::MAX)
    }

    /// True once in `times`.
    pub(super) fn one_in(&mut self, times: u32) -> bool {
        self.below(times) == 0
    }

    /// One of the choices; the empty text when there is none.
    pub(super) fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        let bound = u32::try_from(choices.len()).unwrap_or(u32::MAX);
        choices
            .get(self.below(bound) as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Hexadecimal digits, 16 for each word: text that compresses badly.
    pub(super) fn noise(&mut self, words: u32) -> String {
        (0..words)
            .map(|_| format!("{:016x}", self.next()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_sequence() {
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn bounds_hold() {
        let mut random = Random::new(0);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert_eq!(
            (random.below(0), random.below(1), random.pick(&[])),
            (0, 0, "")
        );
        assert_eq!(random.noise(3).len(), 48);
    }
}
