//! Which numbers of a stream have come: the check for gaps and copies.

/// Positive numbers that were seen, as ranges: 1 to `upto`, and what lies above a gap.
#[derive(Debug, Default)]
pub(in crate::load) struct Seen {
    /// All numbers up to here were seen.
    pub(in crate::load) upto: u64,
    /// Rising, neither overlapping nor touching.
    above: Vec<(u64, u64)>,
}

impl Seen {
    /// Whether the number is new.
    pub(in crate::load) fn insert(&mut self, number: u64) -> bool {
        if number == self.upto + 1 && self.above.is_empty() {
            self.upto = number;
            return true;
        }
        if number <= self.upto {
            return false;
        }
        // The first range that ends at or behind the number, or touches it from below.
        let at = self.above.partition_point(|(_, last)| last + 1 < number);
        match self.above.get_mut(at) {
            Some((first, last)) if *first <= number && number <= *last => return false,
            Some((_, last)) if *last + 1 == number => {
                *last = number;
                if let Some((first, end)) = self.above.get(at + 1).copied()
                    && first == number + 1
                {
                    self.above[at].1 = end;
                    self.above.remove(at + 1);
                }
            }
            Some((first, _)) if *first == number + 1 => *first = number,
            _ => self.above.insert(at, (number, number)),
        }
        if let Some((first, last)) = self.above.first().copied()
            && first == self.upto + 1
        {
            self.upto = last;
            self.above.remove(0);
        }
        true
    }

    /// Whether the number was seen.
    pub(in crate::load) fn contains(&self, number: u64) -> bool {
        number <= self.upto || self.above.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// Whether a number is missing below one that was seen.
    pub(in crate::load) fn has_gap(&self) -> bool {
        !self.above.is_empty()
    }

    pub(in crate::load) fn highest(&self) -> u64 {
        self.above.last().map_or(self.upto, |(_, last)| *last)
    }

    /// How many numbers up to `head` were not seen.
    pub(in crate::load) fn missing_up_to(&self, head: u64) -> u64 {
        let above: u64 = self.above.iter().map(|(first, last)| last - first + 1).sum();
        head - self.upto - above
    }
}

/// Whether a gap stays: what was overtaken comes within a moment, what was left out does not come at all.
#[derive(Debug, Default)]
pub(in crate::load) struct Standing {
    /// Below the gap, when it was looked for last, and whether it was reported.
    found: Option<(u64, bool)>,
}

impl Standing {
    /// Looks once in a while: whether the gap was there the last time as well. Each is reported once.
    pub(in crate::load) fn look(&mut self, seen: &Seen) -> bool {
        match &mut self.found {
            _ if !seen.has_gap() => self.found = None,
            Some((upto, reported)) if *upto == seen.upto => return !std::mem::replace(reported, true),
            found => *found = Some((seen.upto, false)),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn seen_is_a_set_of_numbers(numbers in proptest::collection::vec(1_u64..60, 0..120)) {
            let (mut seen, mut set) = (Seen::default(), std::collections::BTreeSet::new());
            for number in numbers {
                prop_assert_eq!(seen.contains(number), set.contains(&number));
                prop_assert_eq!(seen.insert(number), set.insert(number));
                prop_assert!(seen.above.windows(2).all(|two| two[0].1 + 1 < two[1].0));
                prop_assert!(seen.above.first().is_none_or(|(first, _)| *first > seen.upto + 1));
            }
            let head = set.last().copied().unwrap_or(0);
            prop_assert_eq!(seen.highest(), head);
            prop_assert_eq!(seen.missing_up_to(head), head - set.len() as u64);
        }
    }

    #[test]
    fn a_gap_that_stays_is_reported_once() {
        let (mut seen, mut standing) = (Seen::default(), Standing::default());
        let mut looks = |numbers: &[u64]| {
            numbers.iter().for_each(|number| {
                seen.insert(*number);
            });
            standing.look(&seen)
        };
        assert!(!looks(&[1, 3]) && !looks(&[2, 4, 6]), "another gap than before");
        assert!(!looks(&[5]) && !looks(&[8]), "a gap is new after there was none");
        assert!(looks(&[9, 11]) && !looks(&[12]));
        assert!(!looks(&[7]) && looks(&[]), "the next one of the same");
    }
}
