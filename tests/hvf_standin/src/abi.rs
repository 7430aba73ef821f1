//! The framework's types and numbers, after `arm64/hv/hv_kern_types.h` and `Hypervisor/hv_vcpu_types.h`.

/// `HV_SUCCESS` or one of the others.
pub type Answer = i32;

pub const HV_SUCCESS: Answer = 0;
pub const HV_ERROR: Answer = 0xfae9_4001_u32 as Answer;
pub const HV_BUSY: Answer = 0xfae9_4002_u32 as Answer;
pub const HV_BAD_ARGUMENT: Answer = 0xfae9_4003_u32 as Answer;
pub const HV_ILLEGAL_GUEST_STATE: Answer = 0xfae9_4004_u32 as Answer;
pub const HV_NO_RESOURCES: Answer = 0xfae9_4005_u32 as Answer;
pub const HV_NO_DEVICE: Answer = 0xfae9_4006_u32 as Answer;
pub const HV_DENIED: Answer = 0xfae9_4007_u32 as Answer;
pub const HV_UNSUPPORTED: Answer = 0xfae9_400f_u32 as Answer;

pub const EXIT_CANCELED: u32 = 0;
pub const EXIT_EXCEPTION: u32 = 1;
pub const EXIT_UNKNOWN: u32 = 3;

pub const REG_PC: u32 = 31;
pub const REG_FPCR: u32 = 32;
pub const REG_FPSR: u32 = 33;
pub const REG_CPSR: u32 = 34;

/// `hv_vcpu_exit_t`.
#[repr(C)]
#[derive(Default)]
pub struct Exit {
    pub reason: u32,
    pub syndrome: u64,
    pub virtual_address: u64,
    pub physical_address: u64,
}

/// What the inside of a call returns: the framework's refusal, or nothing.
pub type Result<T = ()> = std::result::Result<T, Answer>;

/// The answer of a call whose inside returned `result`.
pub fn answer(result: Result) -> Answer {
    result.err().unwrap_or(HV_SUCCESS)
}

/// The framework's word for a refusal of KVM's, which is told on standard error: the callers are tests.
pub fn refused(call: &str) -> impl FnOnce(kvm_ioctls::Error) -> Answer + '_ {
    move |error| {
        eprintln!("hvf_standin: {call}: {error}");
        match error.errno() {
            libc::EBUSY => HV_BUSY,
            libc::EINVAL => HV_BAD_ARGUMENT,
            libc::ENOMEM => HV_NO_RESOURCES,
            _ => HV_ERROR,
        }
    }
}
