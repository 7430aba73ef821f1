//! Whether this host can run a machine, on Linux: there are KVMs that run small guests only.

use hyperkit::accel::Error;
use hyperkit::accel::kvm::Kvm;

pub fn probe() -> Result<(), Error> {
    Kvm::open()?.probe()
}
