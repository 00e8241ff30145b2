//! Numbers for the senders of what a window holds, pure: a name is held once, however much its user says.

use std::hash::{BuildHasher as _, RandomState};

use convoke_protocol::id::UserId;
use hashbrown::HashTable;

/// So many senders of whom nothing is left may stay.
const SPARE: usize = 16;

/// Who has which number. A sender of whom nothing is left keeps it until the numbers are given anew.
#[derive(Debug, Clone, Default)]
pub(super) struct Senders {
    all: Vec<Sender>,
    /// Numbers, by the names.
    by_name: HashTable<u32>,
    hashing: RandomState,
    /// How many have no entry.
    unused: usize,
}

#[derive(Debug, Clone)]
struct Sender {
    user: UserId,
    /// Entries.
    uses: u32,
}

impl Senders {
    /// Whose number this is; it was given out.
    pub(super) fn name(&self, number: u32) -> &UserId {
        &self.all[number as usize].user
    }

    /// The number for one more entry of this sender.
    pub(super) fn take(&mut self, user: UserId) -> u32 {
        let Self { all, by_name, hashing, unused } = self;
        let hash = hashing.hash_one(&user);
        if let Some(number) = by_name.find(hash, |number| all[*number as usize].user == user) {
            let sender = &mut all[*number as usize];
            *unused -= usize::from(sender.uses == 0);
            sender.uses += 1;
            return *number;
        }
        // There are never as many as a `u32` counts.
        let number = all.len() as u32;
        all.push(Sender { user, uses: 1 });
        by_name.insert_unique(hash, number, |number| hashing.hash_one(&all[*number as usize].user));
        number
    }

    /// One entry of this number's sender is gone.
    pub(super) fn release(&mut self, number: u32) {
        let sender = &mut self.all[number as usize];
        sender.uses -= 1;
        self.unused += usize::from(sender.uses == 0);
    }

    /// Lets go of those without entries, once they are most; the numbers are others then, and this says which: a former number's
    /// place holds the present one, which is of no meaning where the sender is gone.
    pub(super) fn compact(&mut self) -> Option<Vec<u32>> {
        if self.unused <= SPARE.max(self.all.len() / 2) {
            return None;
        }
        let former = std::mem::take(self);
        let mut numbers = Vec::with_capacity(former.all.len());
        for Sender { user, uses } in former.all {
            numbers.push(self.all.len() as u32);
            if uses > 0 {
                let number = self.take(user);
                self.all[number as usize].uses = uses;
            }
        }
        Some(numbers)
    }

    /// Bytes on the heap, about; without the names, which others hold as well.
    pub(super) fn held_bytes(&self) -> usize {
        self.all.capacity() * size_of::<Sender>() + self.by_name.capacity() * size_of::<(u32, u8)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_while_something_of_its_is_and_a_little_longer() {
        let user = |n: usize| UserId::new(&format!("user-{n}")).expect("valid");
        let mut senders = Senders::default();
        let mut numbers: Vec<_> = (0..100).map(|n| senders.take(user(n))).collect();
        assert_eq!(senders.take(user(7)), numbers[7]);
        numbers[..50].iter().for_each(|number| senders.release(*number));
        // One entry of the eighth is left, so that 49 of 100 have none.
        assert_eq!(senders.compact(), None);
        senders.release(numbers[98]);
        senders.release(numbers[99]);
        assert_eq!(senders.take(user(99)), numbers[99]);
        assert_eq!(senders.compact(), None);
        senders.release(numbers[99]);
        let anew = senders.compact().expect("51 have none");
        numbers.iter_mut().for_each(|number| *number = anew[*number as usize]);
        for n in (50..98).chain([7]) {
            assert_eq!(senders.name(numbers[n]), &user(n));
            assert_eq!(senders.take(user(n)), numbers[n]);
        }
        assert_eq!(senders.all.len(), 49);
    }
}
