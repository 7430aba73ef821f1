//! What Hypervisor.framework answers, as this crate's errors. Nothing in here calls it, so any host can test it.

use std::fmt;
use std::io;

use crate::accel::Error;

/// [`HV_SUCCESS`], or one of [`CODES`].
#[allow(non_camel_case_types)]
pub type hv_return_t = i32;

pub const HV_SUCCESS: hv_return_t = 0;

/// Every code of `hv_kern_types.h`: `err_local | err_sub(0xba5) | number`.
const CODES: &[(u32, io::ErrorKind, &str, &str)] = &[
    (ERROR, io::ErrorKind::Other, "HV_ERROR", "it did not work"),
    (BUSY, io::ErrorKind::ResourceBusy, "HV_BUSY", "what it needs is in use"),
    (BAD_ARGUMENT, io::ErrorKind::InvalidInput, "HV_BAD_ARGUMENT", "an argument is not valid"),
    (
        ILLEGAL_GUEST_STATE,
        io::ErrorKind::InvalidData,
        "HV_ILLEGAL_GUEST_STATE",
        "the guest is in a state that no processor can be in",
    ),
    (
        NO_RESOURCES,
        io::ErrorKind::QuotaExceeded,
        "HV_NO_RESOURCES",
        "the host has not enough resources",
    ),
    (NO_DEVICE, io::ErrorKind::NotFound, "HV_NO_DEVICE", "there is no such machine or vCPU"),
    (DENIED, io::ErrorKind::PermissionDenied, "HV_DENIED", "macOS does not allow it"),
    (EXISTS, io::ErrorKind::AlreadyExists, "HV_EXISTS", "it exists already"),
    (UNSUPPORTED, io::ErrorKind::Unsupported, "HV_UNSUPPORTED", "this host cannot do it"),
];

const ERROR: u32 = 0xfae9_4001;
const BUSY: u32 = 0xfae9_4002;
const BAD_ARGUMENT: u32 = 0xfae9_4003;
const ILLEGAL_GUEST_STATE: u32 = 0xfae9_4004;
const NO_RESOURCES: u32 = 0xfae9_4005;
const NO_DEVICE: u32 = 0xfae9_4006;
const DENIED: u32 = 0xfae9_4007;
const EXISTS: u32 = 0xfae9_4008;
const UNSUPPORTED: u32 = 0xfae9_400f;

/// A code that is not `HV_SUCCESS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refusal(u32);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CODES.iter().find(|(code, ..)| *code == self.0) {
            Some((_, _, name, meaning)) => write!(f, "{meaning} ({name})"),
            None => write!(f, "unknown answer {:#x}", self.0),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let known = CODES.iter().find(|(code, ..)| *code == refusal.0);
        io::Error::new(known.map_or(io::ErrorKind::Other, |(_, kind, ..)| *kind), refusal)
    }
}

/// Checks what `call` answered. `on` says what it was about (" for vCPU 1"), and is only asked after a failure.
pub fn check(
    answer: hv_return_t,
    call: &'static str,
    on: impl FnOnce() -> String,
) -> Result<(), Error> {
    match answer {
        HV_SUCCESS => Ok(()),
        _ => Err(Error::Call { call, on: on(), source: Refusal(answer as u32).into() }),
    }
}

/// The same for `hv_vm_create`, and for a call before it: those tell whether the framework can be used at all.
pub fn check_create(answer: hv_return_t, call: &'static str) -> Result<(), Error> {
    let unavailable = |hint: &str| {
        Err(Error::Unavailable {
            what: "Hypervisor.framework".into(),
            why: Refusal(answer as u32).to_string(),
            hint: hint.into(),
        })
    };
    match answer as u32 {
        DENIED => unavailable(
            "sign the program with the entitlement com.apple.security.hypervisor: `codesign --sign - --force \
             --entitlements FILE PROGRAM`, where FILE is a property list that has it as true",
        ),
        BUSY | EXISTS => Err(Error::Unsupported(
            "macOS allows one virtual machine a process, and this process has one; drop that first, or start \
             another process"
                .into(),
        )),
        UNSUPPORTED | NO_DEVICE => unavailable(
            "use a Mac with Apple silicon and macOS 15 or later that is not a virtual machine itself \
             (`sysctl kern.hv_support` says 1)",
        ),
        _ => check(answer, call, String::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(number: u32) -> hv_return_t {
        (0xfae9_4000 | number) as hv_return_t
    }

    #[test]
    fn every_answer_names_the_call_what_it_was_about_and_the_code() {
        assert!(check(HV_SUCCESS, "hv_vm_map", || unreachable!()).is_ok());
        for (number, name) in [(1, "HV_ERROR"), (4, "HV_ILLEGAL_GUEST_STATE"), (8, "HV_EXISTS")] {
            let error = check(code(number), "hv_vcpu_run", || " on vCPU 3".into()).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("hv_vcpu_run failed on vCPU 3: "), "{text}");
            assert!(text.contains(name), "{text}");
        }
        let unknown = check(code(0x77), "hv_vcpu_run", String::new).unwrap_err().to_string();
        assert!(unknown.contains("0xfae94077"), "{unknown}");
    }

    #[test]
    fn a_program_that_is_not_signed_is_told_how() {
        let text = check_create(code(7), "hv_vm_create").unwrap_err().to_string();
        assert!(text.contains("HV_DENIED") && text.contains("codesign"), "{text}");
        assert!(text.contains("com.apple.security.hypervisor"), "{text}");
    }

    #[test]
    fn a_second_machine_is_refused_in_words() {
        let text = check_create(code(2), "hv_vm_create").unwrap_err().to_string();
        assert!(text.contains("one virtual machine a process"), "{text}");
    }

    #[test]
    fn a_host_without_the_framework_is_told_what_it_needs() {
        let text = check_create(code(0xf), "hv_vm_create").unwrap_err().to_string();
        assert!(text.contains("macOS 15"), "{text}");
    }

    #[test]
    fn any_other_answer_names_the_call() {
        let call = "hv_vm_config_get_max_ipa_size";
        assert!(check_create(HV_SUCCESS, call).is_ok());
        let text = check_create(code(5), call).unwrap_err().to_string();
        assert!(text.starts_with(call) && text.contains("HV_NO_RESOURCES"), "{text}");
    }
}
