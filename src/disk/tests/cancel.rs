//! Requests that are taken away: dropped if they have not begun, waited for if somebody is at their memory.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::super::engine::{Extent, Op, Request};
use super::super::spec::Target;
use super::*;

/// Storage whose calls wait until each is let go.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Calls>, Condvar)>);

#[derive(Default)]
struct Calls {
    begun: usize,
    ended: usize,
    /// So many may end.
    allowed: usize,
}

impl Gate {
    fn pass(&self) {
        let (calls, changed) = &*self.0;
        let mut calls = calls.lock().unwrap();
        calls.begun += 1;
        changed.notify_all();
        let mut calls = changed.wait_while(calls, |calls| calls.allowed <= calls.ended).unwrap();
        calls.ended += 1;
        changed.notify_all();
    }

    fn allow(&self, more: usize) {
        self.0.0.lock().unwrap().allowed += more;
        self.0.1.notify_all();
    }

    fn wait_begun(&self, count: usize) {
        let calls = self.0.0.lock().unwrap();
        let patience = Duration::from_secs(20);
        let wait = self.0.1.wait_timeout_while(calls, patience, |calls| calls.begun < count);
        assert!(!wait.unwrap().1.timed_out(), "fewer than {count} calls");
    }

    fn begun(&self) -> usize {
        self.0.0.lock().unwrap().begun
    }
}

impl BlockBackend for Gate {
    fn size(&self) -> u64 {
        1 << 30
    }
    fn read(&self, _offset: u64, _into: Buffers<'_>) -> std::io::Result<()> {
        self.pass();
        Ok(())
    }
    fn write(&self, _offset: u64, _from: Buffers<'_>) -> std::io::Result<()> {
        self.pass();
        Ok(())
    }
    fn flush(&self) -> std::io::Result<()> {
        self.pass();
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> std::io::Result<()> {
        self.pass();
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> std::io::Result<()> {
        self.pass();
        Ok(())
    }
}

fn gate() -> (Gate, Rig) {
    let gate = Gate::default();
    let target = Target::Backend(Arc::new(gate.clone()));
    let rig = Rig::new(&target, Engine::Auto, false).unwrap();
    (gate, rig)
}

/// Cancels while calls are under way, which are let go one by one until that has returned.
fn cancel(gate: &Gate, mut rig: Rig) -> Rig {
    let (done, wait) = channel();
    let (going, goes) = channel();
    let thread = std::thread::spawn(move || {
        going.send(()).unwrap();
        rig.cancel();
        done.send(rig).unwrap();
    });
    goes.recv().unwrap();
    // It cannot return before somebody is let go, and nobody is before it has taken away what waits.
    let mut time = Duration::from_millis(200);
    loop {
        if let Ok(rig) = wait.recv_timeout(time) {
            thread.join().unwrap();
            return rig;
        }
        gate.allow(1);
        time = Duration::from_millis(20);
    }
}

#[test]
fn threads_are_waited_for_and_what_waits_for_them_is_dropped() {
    let (gate, mut rig) = gate();
    for n in 0..40 {
        let request = rig.request(Op::Write { offset: n * 512 }, vec![1; 512], &[]);
        assert!(rig.submit(request).is_none());
        gate.wait_begun((n as usize + 1).min(16));
    }
    let mut rig = cancel(&gate, rig);
    assert_eq!(rig.alive.load(Ordering::SeqCst), 0, "requests are left");
    assert!(rig.collect().is_empty());
    let begun = gate.begun();
    assert!(begun < 40, "everything was carried out");
    // And on with the next.
    gate.allow(100);
    for kind in [Op::Flush, Op::Read { offset: 0 }] {
        rig.run(kind, vec![0; 512]).0.unwrap();
    }
    assert_eq!(gate.begun(), begun + 2);
}

#[test]
fn a_large_request_ends_between_two_steps() {
    let extent = |n: u64| Extent { offset: n << 20, len: 512, unmap: false };
    let large = Extent { len: 2 << 30, ..extent(0) };
    for (op, len) in [
        (Op::Read { offset: 0 }, 100 << 20),
        (Op::Write { offset: 0 }, 100 << 20),
        (Op::Discard((0..25).map(extent).collect()), 0),
        (Op::WriteZeroes((0..25).map(extent).collect()), 0),
        (Op::WriteZeroes(vec![large]), 0),
    ] {
        let (gate, mut rig) = gate();
        let what = format!("{op:?}");
        let request = rig.request(op, vec![0; len], &[1 << 20; 50]);
        assert!(rig.submit(request).is_none());
        gate.wait_begun(1);
        let rig = cancel(&gate, rig);
        assert_eq!(rig.alive.load(Ordering::SeqCst), 0);
        assert!(gate.begun() < 25, "carried out to its end: {what}");
    }
}

#[test]
fn an_engine_that_is_dropped_waits_as_well() {
    let (gate, mut rig) = gate();
    let alive = rig.alive.clone();
    for _ in 0..20 {
        let request = rig.request(Op::Write { offset: 0 }, vec![1; 512], &[]);
        rig.submit(request);
    }
    gate.wait_begun(16);
    let (done, wait) = channel();
    let thread = std::thread::spawn(move || {
        drop(rig);
        done.send(()).unwrap();
    });
    while wait.recv_timeout(Duration::from_millis(20)).is_err() {
        gate.allow(1);
    }
    thread.join().unwrap();
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

/// A request for memory that is everybody's.
fn shared(rig: &mut Rig, op: Op, memory: &'static Memory, pieces: usize) -> Request<Token> {
    let mut request = rig.request(op, vec![], &[]);
    for _ in 0..pieces {
        // SAFETY: the memory lives for ever, and is accessed through volatile slices and by the kernel only.
        request.buffers.push(unsafe { VolatileSlice::new(memory.0.cast(), Memory::LEN) });
    }
    request
}

struct Memory(*mut [u8; Memory::LEN]);

impl Memory {
    const LEN: usize = 1 << 20;

    fn new() -> &'static Self {
        Box::leak(Box::new(Self(Box::leak(Box::new([0; Self::LEN])))))
    }

    fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: it lives for ever.
        unsafe { VolatileSlice::new(self.0.cast(), Self::LEN) }
    }
}

/// Requests in the kernel, and more than it has room for: when they are cancelled, nobody writes to their memory.
#[test]
fn files_let_go_of_memory() {
    let memory = Memory::new();
    for folder in folders() {
        let bytes = vec![0x11; 16 << 20];
        let file = file_of(&folder, &bytes);
        for dropped in [false, true] {
            for mut rig in rigs(file.path()) {
                let alive = rig.alive.clone();
                for n in 0..300 {
                    let op = Op::Read { offset: (n % 8) << 20 };
                    let request = shared(&mut rig, op, memory, 8);
                    assert!(rig.submit(request).is_none());
                    if n % 100 == 99 {
                        rig.collect();
                    }
                }
                let rig = if dropped {
                    drop(rig);
                    None
                } else {
                    rig.cancel();
                    Some(rig)
                };
                assert_eq!(alive.load(Ordering::SeqCst), 0, "requests are left");
                memory.slice().copy_from(&[0x22_u8; Memory::LEN]);
                std::thread::sleep(Duration::from_millis(5));
                let mut after = vec![0_u8; Memory::LEN];
                memory.slice().copy_to(&mut after[..]);
                assert!(after.iter().all(|&byte| byte == 0x22), "written to after the end");
                if let Some(mut rig) = rig {
                    assert!(rig.collect().is_empty());
                    let (result, found) = rig.run(Op::Read { offset: 512 }, vec![0; 1024]);
                    result.unwrap();
                    assert_eq!(found, [0x11; 1024]);
                }
            }
        }
    }
}
