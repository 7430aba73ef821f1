//! The numbers of errors, which are the guest's own.

/// The same number.
pub(super) fn to_linux(number: i32) -> i32 {
    number
}
