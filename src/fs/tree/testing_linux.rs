//! A host that lacks a system call, for tests.

use std::thread;

/// Runs tests, one after the other, on a thread that has no openat2: it fails with `errno`.
pub(in crate::fs) fn without_openat2(errno: i32, tests: &'static [fn()]) {
    let run = move || {
        forbid(libc::SYS_openat2, errno);
        tests.iter().for_each(|test| test());
    };
    thread::spawn(run).join().unwrap();
}

/// Takes a system call from this thread, and from those that it starts.
fn forbid(call: libc::c_long, errno: i32) {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k, jf| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut steps = [
        // The number of the call is what `struct seccomp_data` begins with.
        step(load, 0, 0),
        step(equal, call as u32, 1),
        step(end, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
        step(end, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the second call gets a filter of steps that are there; a bad one would be refused. The third opens nothing.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let done = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::syscall(call, -1, 0, 0, 0), -1);
    }
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(errno));
}
