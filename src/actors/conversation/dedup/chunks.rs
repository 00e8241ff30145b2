//! A queue in pieces of one size, pure.
//!
//! A [`VecDeque`] of a queue that grows and shrinks around some length ends up at twice that length, and each doubling leaves a hole of
//! another size. Here a piece is given back as soon as its last entry is gone, and every piece fits where another was.

use std::collections::VecDeque;
use std::ops::Index;

/// Entries of a piece.
const PIECE: usize = 16;

/// A queue of small values: in at the back, out at the front, and readable at each place.
#[derive(Debug, Clone)]
pub(super) struct Chunks<T> {
    /// All but the last are full.
    pieces: VecDeque<Vec<T>>,
    /// How many of the first piece are gone.
    gone: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { pieces: VecDeque::new(), gone: 0 }
    }
}

impl<T: Copy> Chunks<T> {
    pub(super) fn len(&self) -> usize {
        let Some(last) = self.pieces.back() else { return 0 };
        (self.pieces.len() - 1) * PIECE + last.len() - self.gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn front(&self) -> Option<&T> {
        self.pieces.front()?.get(self.gone)
    }

    pub(super) fn push_back(&mut self, value: T) {
        match self.pieces.back_mut() {
            Some(last) if last.len() < PIECE => last.push(value),
            Some(_) => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(value);
                self.pieces.push_back(piece);
            }
            // The only piece of a short queue grows as it is needed.
            None => self.pieces.push_back(vec![value]),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let first = self.pieces.front()?;
        let value = *first.get(self.gone)?;
        self.gone += 1;
        if self.gone == first.len() {
            self.pieces.pop_front();
            self.gone = 0;
            if self.pieces.len() * 4 < self.pieces.capacity() {
                self.pieces.shrink_to(self.pieces.len() * 2);
            }
        }
        Some(value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flatten().skip(self.gone)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pieces.iter_mut().flatten().skip(self.gone)
    }

    /// Bytes on the heap, about.
    pub(super) fn held_bytes(&self) -> usize {
        let last = self.pieces.back().map_or(0, Vec::capacity);
        let full = self.pieces.len().saturating_sub(1) * PIECE;
        self.pieces.capacity() * size_of::<Vec<T>>() + (full + last) * size_of::<T>()
    }
}

impl<T: Copy> Index<usize> for Chunks<T> {
    type Output = T;

    fn index(&self, place: usize) -> &T {
        let place = place + self.gone;
        &self.pieces[place / PIECE][place % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a queue in one piece: `true` pushes, `false` pops.
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.6), 0..200), 0..6)) {
            let (mut chunks, mut model) = (Chunks::default(), VecDeque::new());
            for (round, steps) in steps.into_iter().enumerate() {
                for (n, push) in steps.into_iter().enumerate() {
                    // Every other round empties more than it fills.
                    if push == (round % 2 == 0) {
                        chunks.push_back((round, n));
                        model.push_back((round, n));
                    } else {
                        prop_assert_eq!(chunks.pop_front(), model.pop_front());
                    }
                    prop_assert_eq!(chunks.front(), model.front());
                    prop_assert_eq!((chunks.len(), chunks.is_empty()), (model.len(), model.is_empty()));
                }
                prop_assert!((0..model.len()).all(|n| chunks[n] == model[n]));
                    prop_assert!(chunks.iter().eq(model.iter()));
                prop_assert!(chunks.iter_mut().map(|value| *value).eq(model.iter().copied()));
            }
        }
    }

    #[test]
    fn what_a_burst_took_is_given_back() {
        let mut chunks = Chunks::default();
        (0..100_000u64).for_each(|n| chunks.push_back(n));
        let (held, values) = (chunks.held_bytes(), 100_000 * size_of::<u64>());
        assert!((values..values * 3 / 2).contains(&held), "{held}");
        while chunks.len() > 10 {
            chunks.pop_front();
        }
        assert!(chunks.held_bytes() < 1_000, "{}", chunks.held_bytes());
    }
}
