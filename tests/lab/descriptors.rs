//! Descriptors for tests that take thousands of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process have descriptors for thousands of connections, or files of a share.
pub fn allow_descriptors(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < count) {
        let maximum = limit.maximum.map(|most| most.max(count));
        setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum }).unwrap();
    }
}
