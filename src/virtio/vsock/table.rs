//! The connections of a device: found by ports, in turns, and when their time is up.
//!
//! Everything in here is bounded by the number of connections: a slot is on the list of those that wait for a turn at
//! most once, whoever is in it, and has one alarm at most.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use super::connection::Connection;
use super::packet::Ports;

/// What is kept for each connection that there may be, if there is as much …
const RESERVE: usize = 4 << 10;
/// … and the least that one may have under way, whatever there is.
const LEAST: usize = 256;
/// The part of the rest that one gets.
const SHARE: usize = 64;

#[derive(Debug, Default)]
struct Slot {
    connection: Option<Connection>,
    /// It is on the list.
    queued: bool,
    alarm: Option<Instant>,
}

/// Connections, each in a numbered slot.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, u32>,
    turns: VecDeque<u32>,
    alarms: BTreeSet<(Instant, u32)>,
    /// Most connections.
    limit: usize,
    /// Most that a connection may have under way, and what is kept for each that there may be.
    buffer: u32,
    reserve: u32,
    /// What is left beside that.
    left: usize,
    /// Connections that the guest knows nothing of any more.
    lingering: usize,
}

impl Table {
    pub fn new(limit: usize, buffer: u32, memory: usize) -> Self {
        let reserve = (memory / limit).clamp(LEAST, RESERVE);
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::new(),
            alarms: BTreeSet::new(),
            limit,
            buffer,
            reserve: reserve as u32,
            left: memory.saturating_sub(limit * reserve),
            lingering: 0,
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// How large the window of a connection can be that has `now` already: less and less the more there are.
    pub fn share(&self, now: u32) -> u32 {
        let share = u32::try_from((self.left + self.extra(now)) / SHARE).unwrap_or(u32::MAX);
        self.reserve.saturating_add(share).min(self.buffer).max(now)
    }

    /// What a window of this size takes of what is left.
    fn extra(&self, size: u32) -> usize {
        size.saturating_sub(self.reserve) as usize
    }

    /// Takes a connection in; whoever calls this has seen that there is room.
    pub fn insert(&mut self, connection: Connection) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        self.by_ports.insert(connection.ports, slot);
        self.left -= self.extra(connection.window.size());
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.connection = Some(connection);
        }
        slot
    }

    pub fn get(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.connection.as_mut()
    }

    pub fn find(&self, ports: Ports) -> Option<u32> {
        self.by_ports.get(&ports).copied()
    }

    /// Gives a connection a larger window, if there is memory for it.
    pub fn grow(&mut self, slot: u32) {
        let now = self.get(slot).map_or(0, |connection| connection.window.size());
        let size = self.share(now);
        if let Some(connection) = self.get(slot) {
            connection.window.grow(size);
            self.left -= self.extra(size) - self.extra(now);
        }
    }

    /// Frees the ports of a connection that goes on without the guest.
    pub fn linger(&mut self, slot: u32) {
        let Some(ports) = self.get(slot).map(|connection| connection.ports) else { return };
        self.set_alarm(slot, None);
        self.lingering += usize::from(self.by_ports.remove(&ports).is_some());
    }

    /// A connection that goes on without the guest.
    pub fn lingering(&self) -> Option<u32> {
        if self.lingering == 0 {
            return None;
        }
        let unknown = |&slot: &u32| {
            let connection = self.slots.get(slot as usize).and_then(|it| it.connection.as_ref());
            connection.is_some_and(|it| self.by_ports.get(&it.ports) != Some(&slot))
        };
        self.slots().find(unknown)
    }

    pub fn remove(&mut self, slot: u32) -> Option<Connection> {
        self.set_alarm(slot, None);
        let connection = self.slots.get_mut(slot as usize)?.connection.take()?;
        self.left += self.extra(connection.window.size());
        match self.by_ports.get(&connection.ports) {
            Some(&known) if known == slot => drop(self.by_ports.remove(&connection.ports)),
            _ => self.lingering -= 1,
        }
        self.free.push(slot);
        Some(connection)
    }

    /// All slots that may be in use.
    pub fn slots(&self) -> std::ops::Range<u32> {
        0..self.slots.len() as u32
    }

    /// Puts a connection on the list of those that wait for a turn.
    pub fn enqueue(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && !std::mem::replace(&mut place.queued, true)
        {
            self.turns.push_back(slot);
        }
    }

    /// Whose turn it is.
    pub fn next_turn(&mut self) -> Option<u32> {
        let slot = self.turns.pop_front()?;
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.queued = false;
        }
        Some(slot)
    }

    /// Undoes [`next_turn`](Self::next_turn).
    pub fn turn_back(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize)
            && !std::mem::replace(&mut place.queued, true)
        {
            self.turns.push_front(slot);
        }
    }

    /// Sets or clears the one alarm of a connection.
    pub fn set_alarm(&mut self, slot: u32, at: Option<Instant>) {
        let Some(place) = self.slots.get_mut(slot as usize) else { return };
        if let Some(old) = std::mem::replace(&mut place.alarm, at) {
            self.alarms.remove(&(old, slot));
        }
        if let Some(at) = at {
            self.alarms.insert((at, slot));
        }
    }

    /// When the next alarm goes off.
    pub fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|&(at, _)| at)
    }

    /// A connection whose alarm has gone off by `now`.
    pub fn expired(&mut self, now: Instant) -> Option<u32> {
        let &(at, slot) = self.alarms.first().filter(|&&(at, _)| at <= now)?;
        self.alarms.remove(&(at, slot));
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.alarm = None;
        }
        Some(slot)
    }
}
