//! The ranges of a file that somebody has locked, as the host has them. It has no way to list them.

use std::collections::BTreeMap;

use super::LockKind;

/// Ranges by their first byte, with their last. None overlaps another, and none borders on one of the same kind.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, (u64, LockKind)>);

impl Ranges {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes `first` to `last` are of this kind now.
    pub fn set(&mut self, first: u64, last: u64, kind: LockKind) {
        let (mut start, mut end) = (first, last);
        for (from, to, other) in self.around(first.saturating_sub(1), last.saturating_add(1)) {
            if other == kind {
                self.0.remove(&from);
                (start, end) = (start.min(from), end.max(to));
            } else if from <= last && to >= first {
                self.0.remove(&from);
                if from < first {
                    self.0.insert(from, (first - 1, other));
                }
                if to > last {
                    self.0.insert(last + 1, (to, other));
                }
            }
        }
        if kind != LockKind::None {
            self.0.insert(start, (end, kind));
        }
    }

    /// Whether these bytes are the only ones, and all of a kind.
    pub fn are_just(&self, first: u64, last: u64) -> bool {
        self.len() == 1 && self.0.get(&first).is_some_and(|&(to, _)| to == last)
    }

    /// How many more there would be after [`set`](Self::set).
    pub fn growth(&self, first: u64, last: u64, kind: LockKind) -> usize {
        let (mut more, mut less) = (usize::from(kind != LockKind::None), 0);
        for (from, to, other) in self.around(first.saturating_sub(1), last.saturating_add(1)) {
            if other == kind {
                less += 1;
            } else if from <= last && to >= first {
                less += 1;
                more += usize::from(from < first) + usize::from(to > last);
            }
        }
        more.saturating_sub(less)
    }

    /// Those parts of `first` to `last` that a lock of this kind could not have if they were somebody else's.
    pub fn conflicts(&self, first: u64, last: u64, kind: LockKind) -> Vec<(u64, u64)> {
        let both_read = |other| (kind, other) == (LockKind::Read, LockKind::Read);
        let all = self.around(first, last).into_iter();
        all.filter(|&(.., other)| !both_read(other))
            .map(|(from, to, _)| (from.max(first), to.min(last)))
            .collect()
    }

    /// Those with a byte from `first` to `last`, the last one first.
    fn around(&self, first: u64, last: u64) -> Vec<(u64, u64, LockKind)> {
        let up_to_last = self.0.range(..=last).rev();
        let touching = up_to_last.take_while(|&(_, &(to, _))| to >= first);
        touching.map(|(&from, &(to, kind))| (from, to, kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::LockKind::{None, Read, Write};
    use super::*;
    use crate::random::Random;

    const BYTES: usize = 24;

    fn change(random: &mut Random) -> (u64, u64, LockKind) {
        let (a, b) = (random.below(BYTES as u64), random.below(BYTES as u64));
        (a.min(b), a.max(b), [None, Read, Write][random.below(3) as usize])
    }

    #[test]
    fn they_are_what_each_byte_by_itself_would_be() {
        let mut random = Random(7);
        for _ in 0..200 {
            let mut ranges = Ranges::default();
            let mut bytes = [None; BYTES];
            for _ in 0..40 {
                let (first, last, kind) = change(&mut random);
                let (before, growth) = (ranges.len(), ranges.growth(first, last, kind));
                ranges.set(first, last, kind);
                bytes[first as usize..=last as usize].fill(kind);
                assert_eq!(ranges.len().saturating_sub(before), growth, "{ranges:?}");

                let runs = bytes.chunk_by(PartialEq::eq).filter(|run| run[0] != None).count();
                assert_eq!((ranges.len(), ranges.is_empty()), (runs, runs == 0), "{ranges:?}");
                let mut seen = [None; BYTES];
                for (from, to, kind) in ranges.around(0, BYTES as u64) {
                    seen[from as usize..=to as usize].fill(kind);
                }
                assert_eq!(seen, bytes);

                let (first, last, asked) = change(&mut random);
                let mut in_the_way = [false; BYTES];
                for (from, to) in ranges.conflicts(first, last, asked) {
                    in_the_way[from as usize..=to as usize].fill(true);
                }
                for (at, kind) in bytes.into_iter().enumerate() {
                    let inside = (first..=last).contains(&(at as u64));
                    let conflict = kind != None && (kind, asked) != (Read, Read);
                    assert_eq!(in_the_way[at], inside && conflict);
                }
            }
        }
    }

    #[test]
    fn the_last_byte_that_there_can_be_is_one() {
        let mut ranges = Ranges::default();
        ranges.set(0, u64::MAX, Read);
        ranges.set(u64::MAX, u64::MAX, Write);
        assert_eq!(ranges.len(), 2);
        ranges.set(0, u64::MAX, None);
        assert!(ranges.is_empty());
    }
}
