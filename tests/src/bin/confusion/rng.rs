//! Numbers that a seed determines.

/// SplitMix64: small, and good enough to mix scenarios.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn flip(&mut self) -> bool {
        self.next() & 1 == 0
    }

    /// Both ends are included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// Small and large alike: first a magnitude, then a number below it; none that TLS's goodbye
    /// may have, which is told by its size.
    pub fn size(&mut self, low: u64, high: u64) -> u64 {
        loop {
            let magnitude = self.between(u64::from(low.ilog2()), u64::from(high.ilog2()));
            let size = self.between(1 << magnitude, (2 << magnitude) - 1).clamp(low, high);
            if !(23..=31).contains(&size) {
                return size;
            }
        }
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.between(0, all.len() as u64 - 1) as usize]
    }

    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.between(0, i as u64) as usize);
        }
    }
}
