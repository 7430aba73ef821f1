/// How often this thread has given the processor up because it had to wait: the host does not tell.
pub(crate) fn waits() -> Option<u64> {
    None
}
