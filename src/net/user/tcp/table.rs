//! All connections: by name, by age, by when they are due, and those that have something for the guest.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use super::flow::Flow;
use super::segment::Key;

const NIL: u32 = u32::MAX;
/// Bits of a token that are the slot's number.
const SLOT_BITS: u32 = 16;
/// Bits of a token that tell connections in the same slot apart.
const GENERATION_BITS: u32 = 14;

/// Which of the two lists a connection is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Not established yet.
    HalfOpen,
    /// Established.
    Settled,
}

struct Slot {
    flow: Option<Flow>,
    /// Counts the connections that were here.
    generation: u32,
    /// It is in the queue of those that are ready; the next connection here may be so by inheritance.
    queued: bool,
    /// Its entry among the timers.
    due: Option<Instant>,
    age: Age,
    newer: u32,
    older: u32,
}

/// A list in the slots, the latest used first.
#[derive(Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
    len: usize,
}

impl List {
    const EMPTY: Self = Self { newest: NIL, oldest: NIL, len: 0 };
}

/// The connections.
pub(super) struct Table {
    first_token: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// The one that was looked up last.
    recent: u32,
    /// One entry at most per slot: not later than it is due, but maybe earlier.
    timers: BTreeSet<(Instant, u32)>,
    ready: VecDeque<u32>,
    half_open: List,
    settled: List,
}

impl Table {
    /// How many there may be.
    pub const MAX: usize = 1 << SLOT_BITS;

    pub fn new(first_token: u32) -> Self {
        Self {
            first_token,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            recent: NIL,
            timers: BTreeSet::new(),
            ready: VecDeque::new(),
            half_open: List::EMPTY,
            settled: List::EMPTY,
        }
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn half_open(&self) -> usize {
        self.half_open.len
    }

    pub fn get(&mut self, index: u32) -> Option<&mut Flow> {
        self.slots.get_mut(index as usize)?.flow.as_mut()
    }

    pub fn find(&mut self, key: &Key) -> Option<u32> {
        let recent = self.slots.get(self.recent as usize).and_then(|slot| slot.flow.as_ref());
        if recent.is_some_and(|flow| flow.key == *key) {
            return Some(self.recent);
        }
        let index = *self.by_key.get(key)?;
        self.recent = index;
        Some(index)
    }

    /// The number and the token that the next connection will have.
    pub fn next(&mut self) -> Option<(u32, u32)> {
        if self.free.is_empty() {
            let index =
                u32::try_from(self.slots.len()).ok().filter(|i| (*i as usize) < Self::MAX)?;
            self.slots.push(Slot {
                flow: None,
                generation: 0,
                queued: false,
                due: None,
                age: Age::HalfOpen,
                newer: NIL,
                older: NIL,
            });
            self.free.push(index);
        }
        let index = *self.free.last()?;
        Some((index, self.token(index)?))
    }

    fn token(&self, index: u32) -> Option<u32> {
        let generation = self.slots.get(index as usize)?.generation;
        let generation = generation & ((1 << GENERATION_BITS) - 1);
        self.first_token.checked_add((generation << SLOT_BITS) | index)
    }

    /// The connection that a token stands for, if it is still there.
    pub fn by_token(&self, token: u32) -> Option<u32> {
        let index = token.checked_sub(self.first_token)? & ((1 << SLOT_BITS) - 1);
        let slot = self.slots.get(index as usize)?;
        (slot.flow.is_some() && self.token(index) == Some(token)).then_some(index)
    }

    /// Puts a connection where [`next`](Self::next) said.
    pub fn insert(&mut self, flow: Flow) {
        let Some(index) = self.free.pop() else { return };
        self.by_key.insert(flow.key, index);
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.flow = Some(flow);
            slot.age = Age::HalfOpen;
        }
        self.link(index, Age::HalfOpen);
    }

    pub fn remove(&mut self, index: u32) -> Option<Flow> {
        let slot = self.slots.get_mut(index as usize)?;
        let flow = slot.flow.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        if let Some(due) = slot.due.take() {
            self.timers.remove(&(due, index));
        }
        self.unlink(index);
        self.by_key.remove(&flow.key);
        self.free.push(index);
        Some(flow)
    }

    /// It was used just now.
    pub fn touch(&mut self, index: u32, age: Age) {
        let Some(slot) = self.slots.get(index as usize) else { return };
        if slot.age != age || slot.newer != NIL {
            self.unlink(index);
            self.link(index, age);
        }
    }

    /// Some connections of `age`, the one that was not used for longest first.
    pub fn oldest(&self, age: Age) -> impl Iterator<Item = (u32, &Flow)> {
        let list = if age == Age::HalfOpen { &self.half_open } else { &self.settled };
        let slot = |index: u32| self.slots.get(index as usize);
        let first = Some(list.oldest).filter(|index| *index != NIL);
        std::iter::successors(first, move |index| {
            slot(*index).map(|slot| slot.newer).filter(|index| *index != NIL)
        })
        .filter_map(move |index| Some((index, slot(index)?.flow.as_ref()?)))
    }

    fn list(&mut self, age: Age) -> &mut List {
        if age == Age::HalfOpen { &mut self.half_open } else { &mut self.settled }
    }

    fn link(&mut self, index: u32, age: Age) {
        let list = self.list(age);
        let second = std::mem::replace(&mut list.newest, index);
        list.len += 1;
        if list.oldest == NIL {
            list.oldest = index;
        }
        if let Some(slot) = self.slots.get_mut(second as usize) {
            slot.newer = index;
        }
        if let Some(slot) = self.slots.get_mut(index as usize) {
            (slot.age, slot.newer, slot.older) = (age, NIL, second);
        }
    }

    fn unlink(&mut self, index: u32) {
        let Some(slot) = self.slots.get(index as usize) else { return };
        let (age, newer, older) = (slot.age, slot.newer, slot.older);
        if let Some(slot) = self.slots.get_mut(newer as usize) {
            slot.older = older;
        }
        if let Some(slot) = self.slots.get_mut(older as usize) {
            slot.newer = newer;
        }
        let list = self.list(age);
        list.len = list.len.saturating_sub(1);
        if list.newest == index {
            list.newest = older;
        }
        if list.oldest == index {
            list.oldest = newer;
        }
    }

    /// It may have a frame for the guest.
    pub fn enqueue(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push_back(index);
        }
    }

    /// Takes the next that may have a frame for the guest out of the queue.
    pub fn dequeue(&mut self) -> Option<u32> {
        let index = self.ready.pop_front()?;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.queued = false;
        }
        Some(index)
    }

    /// How many there are in that queue.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Sees to it that there is a timer that is not later than `due`.
    pub fn schedule(&mut self, index: u32, due: Instant) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        match slot.due {
            Some(earlier) if earlier <= due => return,
            Some(later) => self.timers.remove(&(later, index)),
            None => false,
        };
        slot.due = Some(due);
        self.timers.insert((due, index));
    }

    /// The earliest timer.
    pub fn earliest(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Takes the earliest timer, if it is due by `now`.
    pub fn expired(&mut self, now: Instant) -> Option<u32> {
        let (due, index) = *self.timers.first()?;
        if due > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.due = None;
        }
        Some(index)
    }

    /// Any connection.
    pub fn any(&self) -> Option<u32> {
        [self.half_open.oldest, self.settled.oldest].into_iter().find(|index| *index != NIL)
    }
}
