//! Whose the files of a share are: what the guest sees, and what becomes of its own on the host.

/// Whose the files of a share are.
///
/// | | the host's files, as the guest sees them | what the guest makes | `chown` and `chmod` in the guest |
/// |---|---|---|---|
/// | [passthrough](Self::passthrough) | as they are | is whose the guest says, if this process may do that | change the host's file |
/// | [squash](Self::squash) | the host user's are one user's | is the host user's | only `chmod`, without set-user-ID and set-group-ID of files |
/// | [mapped](Self::mapped) | as they are, until the guest changes them | is the host user's, with owner and mode beside it | change what is kept beside it |
///
/// The host user is the one that this process runs as when the share is opened. Whatever is chosen, permissions
/// are checked by the guest's kernel, and on the host only this process's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub(super) Rule);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Passthrough,
    Squash { uid: u32, gid: u32 },
    Mapped,
}

impl Owner {
    /// As on the host, numbers, device nodes and all. Made for a process that runs as root, and for a guest whose root
    /// may do in the folder what the host's may: it can make files there that are set-user-ID to root, and device
    /// nodes. A process that is not root makes files that are its own, and fails with EPERM where it is asked to give
    /// them away.
    pub fn passthrough() -> Self {
        Self(Rule::Passthrough)
    }

    /// What belongs to the host user appears in the guest as owned by `uid` and `gid`, and everything else as it is;
    /// what the guest makes is the host user's, whoever made it. Files cannot be given to others (EPERM), nor be
    /// set-user-ID or set-group-ID (that is dropped), and there are no new device nodes (EPERM). Of extended attributes there
    /// are those that begin with `user.`.
    pub fn squash(uid: u32, gid: u32) -> Self {
        Self(Rule::Squash { uid, gid })
    }

    /// Owner and mode of what the guest makes or changes are kept beside the file, in the extended attribute
    /// `user.hyperkit.owner`, which the guest does not see: so the tree of a whole Linux system can be held by a
    /// process that is not root. What has no such attribute appears as it is on the host.
    ///
    /// The guest's device nodes, FIFOs, sockets and symbolic links are plain files on the host, and a link's target
    /// is the file's content. A file of the guest has the permissions on the host that it has in the guest, but that
    /// the host user can always read and write it. Of other extended attributes there are those that begin
    /// with `user.`. The host's file system must have extended attributes.
    pub fn mapped() -> Self {
        Self(Rule::Mapped)
    }
}

impl Rule {
    /// The permissions on the host of what has those of `mode` in the guest.
    pub fn host_permissions(self, mode: u32, is_dir: bool) -> u32 {
        match (self, is_dir) {
            (Self::Passthrough, _) | (Self::Squash { .. }, true) => mode & 0o7777,
            (Self::Squash { .. }, false) => mode & 0o1777,
            (Self::Mapped, true) => mode & 0o777 | 0o700,
            (Self::Mapped, false) => mode & 0o777 | 0o600,
        }
    }
}
