//! Flushes of a file: one at a time, and those that come meanwhile share the next one.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::super::flushes::Flushes;

/// A host that may have data which it could not write, and tells so once.
#[derive(Default)]
struct Host {
    lost: AtomicBool,
    asked: AtomicUsize,
}

impl Host {
    fn flush(&self) -> io::Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.lost.swap(false, Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}

/// The first flush has heard from the host when others come, and nobody else has heard of it yet.
#[test]
fn an_error_that_is_told_once_is_everybodys() {
    for lost in [false, true] {
        let (flushes, host) = (Flushes::default(), Host::default());
        flushes.run(|| host.flush()).unwrap();
        host.lost.store(lost, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let (flushes, host) = (&flushes, &host);
            let (told, tells) = channel();
            let (go, goes) = channel();
            let first = scope.spawn(move || {
                flushes.run(|| {
                    let result = host.flush();
                    told.send(()).unwrap();
                    goes.recv().unwrap();
                    result
                })
            });
            tells.recv().unwrap();
            let others: Vec<_> =
                (0..5).map(|_| scope.spawn(move || flushes.run(|| host.flush()))).collect();
            let start = Instant::now();
            while flushes.waiting() < 5 {
                assert!(start.elapsed() < Duration::from_secs(60), "they do not wait");
                std::thread::yield_now();
            }
            go.send(()).unwrap();
            let first = first.join().unwrap();
            assert_eq!(first.is_err(), lost);
            for other in others {
                assert_eq!(other.join().unwrap().is_err(), lost);
            }
        });
        // What ran when they came was not enough for them; one more was, for all of them.
        assert_eq!(host.asked.load(Ordering::SeqCst), 3);
        assert_eq!(flushes.run(|| host.flush()).is_err(), lost);
        assert_eq!(host.asked.load(Ordering::SeqCst), 4);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn flushes_that_wait_share_the_next_one() {
    let mut queued = super::super::flushes::Queued::<u32>::new();
    assert_eq!(queued.begin(), None);
    queued.push(1);
    assert_eq!(queued.begin(), Some(1));
    for n in 2..5 {
        queued.push(n);
    }
    assert_eq!(queued.begin(), None, "one runs");
    assert_eq!(queued.end().count(), 0);
    let begun = queued.begin().unwrap();
    queued.push(5);
    let mut ended: Vec<_> = queued.end().chain([begun]).collect();
    ended.sort();
    assert_eq!(ended, [2, 3, 4]);
    // What has not begun can be dropped, and the one that runs ends for those that share it.
    queued.push(6);
    let begun = queued.begin().unwrap();
    queued.push(7);
    queued.clear();
    let mut ended: Vec<_> = queued.end().chain([begun]).collect();
    ended.sort();
    assert_eq!(ended, [5, 6]);
    assert_eq!(queued.begin(), None);
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernel_has_one_flush_of_a_file_at_a_time() {
    use super::super::engine::{Done, Op, Request, Runner, Uring};
    use super::super::spec::Target;
    use super::*;
    use std::sync::Arc;

    /// Collects until `count` requests have ended.
    fn finish(ring: &mut Uring<usize>, done: &mut Vec<Done<usize>>, count: usize) {
        ring.collect(done);
        while done.len() < count {
            assert!(ring.in_kernel() <= 1, "flushes side by side");
            ring.wait();
            ring.collect(done);
        }
    }

    let flush = |token| Request { op: Op::Flush, buffers: BufferList::default(), token };
    for folder in folders() {
        let file = sparse(&folder, 1 << 20);
        let disk = Arc::new(raw(file.path()));
        let notifier = crate::sys::Notifier::new().unwrap();
        let mut ring = match Uring::new(&Target::Raw(disk.clone()), &notifier) {
            Ok(ring) => ring,
            Err(error) => {
                println!("skipped: io_uring: {error}");
                return;
            }
        };
        let mut done = Vec::new();
        for token in 0..500 {
            if token % 5 == 0 {
                write(&*disk, 0, &[1; 1 << 20]);
            }
            ring.submit(flush(token));
            ring.collect(&mut done);
            assert!(ring.in_kernel() <= 1, "flushes side by side");
        }
        finish(&mut ring, &mut done, 500);
        let mut tokens: Vec<_> =
            done.drain(..).map(|done| (done.request.token, done.result.is_ok())).collect();
        tokens.sort();
        assert!(tokens.into_iter().eq((0..500).map(|token| (token, true))));
        // Those that are taken away in the middle keep nobody from beginning the next.
        for token in 0..20 {
            ring.submit(flush(token));
            if token % 10 == 0 {
                ring.collect(&mut done);
            }
        }
        ring.cancel();
        done.clear();
        for token in 0..3 {
            ring.submit(flush(token));
        }
        finish(&mut ring, &mut done, 3);
        assert!(done.drain(..).all(|done| done.result.is_ok()));
        // All that share one are told what it is worth.
        disk.flushed(Err(io::Error::from_raw_os_error(libc::EIO))).unwrap_err();
        for token in 0..3 {
            ring.submit(flush(token));
        }
        finish(&mut ring, &mut done, 3);
        assert!(done.iter().all(|done| done.result.is_err()));
    }
}
