//! Hosts that make it hard, for tests: a file that waits for somebody, a system call that is not there, a file system in
//! another.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

/// Has whoever opens a file wait, as long as it lives.
pub(crate) struct Lease(File);

/// Linux's command that says which signal tells of events of a descriptor.
const F_SETSIG: libc::c_int = 10;

impl Lease {
    pub fn on(file: File) -> Self {
        // The kernel would say that somebody waits by SIGIO, which ends a process; SIGURG does nothing.
        for (command, value) in [(F_SETSIG, libc::SIGURG), (libc::F_SETLEASE, libc::F_WRLCK)] {
            // SAFETY: these commands take an int.
            let done = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
        }
        Self(file)
    }

    pub fn wait_until_somebody_waits(&self) {
        // SAFETY: the command takes nothing.
        while unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_GETLEASE) } == libc::F_WRLCK {
            thread::yield_now();
        }
    }
}

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
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        assert_eq!(libc::syscall(call, -1, 0, 0, 0), -1);
    }
    assert_eq!(io::Error::last_os_error().raw_os_error(), Some(errno));
}

/// Runs a test on a thread of its own, unless this process is not root, and says so then.
pub(in crate::fs) fn as_root(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: that takes root");
        return;
    }
    thread::spawn(test).join().unwrap();
}

/// Has a new file system in a folder, as far as this thread sees it.
pub(in crate::fs) fn mount_for_this_thread(at: &Path) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    let none = std::ptr::null::<libc::c_void>();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the first call takes a number; what the others point to are strings that end, or nothing.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none.cast(), c"/".as_ptr(), none.cast(), private, none) == 0
            && libc::mount(c"none".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, none) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
