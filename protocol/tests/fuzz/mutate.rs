//! Makes inputs that are nearly right: what is quite wrong is refused at the first byte and finds nothing.

/// Bytes at which decoders change their mind: ends of ranges, and the marks of bincode's wider integers.
const EDGES: [u8; 10] = [0, 1, 0x7f, 0x80, 250, 251, 252, 253, 254, 255];

/// Longer inputs find the same faults, later.
const MAX_BYTES: usize = 4096;

/// A source of inputs that depends on its seed alone.
pub(crate) struct Mutator(u64);

impl Mutator {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64: small, and good enough to pick places.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        if self.below(2) == 0 { EDGES[self.below(EDGES.len())] } else { self.next().to_le_bytes()[0] }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.byte()).collect()
    }

    /// An input: one of the corpus with one to eight changes, or now and then bytes from nowhere.
    pub(crate) fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        if self.below(32) == 0 {
            return self.bytes(64);
        }
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.below(8) {
            let other = &corpus[self.below(corpus.len())];
            self.change(&mut input, other);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let end = (at + 1 + self.below(16)).min(input.len());
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => input.truncate(at),
            3 => drop(input.splice(at..at, self.bytes(16))),
            4 => drop(input.drain(at..end)),
            5 => {
                let again = input[at..end].to_vec();
                drop(input.splice(at..at, again));
            }
            6 => {
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            // A whole integer at one of its ends, in each width.
            _ => {
                let wide = if self.below(2) == 0 {
                    [0xff; 8]
                } else {
                    (self.next() >> self.below(64)).to_le_bytes()
                };
                let width = [2, 4, 8][self.below(3)];
                let end = (at + width).min(input.len());
                drop(input.splice(at..end, wide[..width].iter().copied()));
            }
        }
    }
}
