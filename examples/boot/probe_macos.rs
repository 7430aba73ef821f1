//! Whether this host can run a machine, on macOS: it can if it makes one.

use hyperkit::accel::{Accelerator, Error, Native, VmSpec};

pub fn probe() -> Result<(), Error> {
    Native.create_vm(&VmSpec::new(1)).map(drop)
}
