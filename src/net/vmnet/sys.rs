//! The foreign part: an interface of vmnet.framework, started, read, written and stopped.
//!
//! Declarations follow the framework's `vmnet/vmnet.h`, and `xpc/xpc.h` and `dispatch/dispatch.h` of the system
//! library. Nothing else calls them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use block2::{Block, RcBlock};
use uuid::Uuid;

use super::{Mode, VmnetError};
use crate::memory::Buffers;
use crate::sys::Notifier;

const HOST_MODE: u64 = 1000;
const SHARED_MODE: u64 = 1001;
const BRIDGED_MODE: u64 = 1002;

const SUCCESS: u32 = 1000;
const BUFFER_EXHAUSTED: u32 = 1007;

const PACKETS_AVAILABLE: u32 = 1;

/// How long the framework may take to start or to stop an interface.
const PATIENCE: Duration = Duration::from_secs(10);

/// Packets read in one call.
pub(super) const BATCH: usize = 32;

/// `struct vmpktdesc`
#[repr(C)]
#[derive(Clone, Copy)]
struct Packet {
    size: usize,
    pieces: *mut libc::iovec,
    count: u32,
    flags: u32,
}

type Object = *mut c_void;
type Started = dyn Fn(u32, Object);
type Stopped = dyn Fn(u32);

#[link(name = "vmnet", kind = "framework")]
unsafe extern "C" {
    static vmnet_operation_mode_key: *const c_char;
    static vmnet_shared_interface_name_key: *const c_char;
    static vmnet_interface_id_key: *const c_char;
    static vmnet_mac_address_key: *const c_char;
    static vmnet_mtu_key: *const c_char;
    static vmnet_max_packet_size_key: *const c_char;

    fn vmnet_start_interface(description: Object, queue: Object, done: &Block<Started>) -> Object;
    fn vmnet_stop_interface(interface: Object, queue: Object, done: &Block<Stopped>) -> u32;
    fn vmnet_interface_set_event_callback(
        interface: Object,
        events: u32,
        queue: Object,
        callback: &Block<Started>,
    ) -> u32;
    fn vmnet_read(interface: Object, packets: *mut Packet, count: *mut c_int) -> u32;
    fn vmnet_write(interface: Object, packets: *mut Packet, count: *mut c_int) -> u32;
}

unsafe extern "C" {
    fn dispatch_queue_create(label: *const c_char, attributes: Object) -> Object;
    fn dispatch_release(object: Object);
    fn xpc_dictionary_create(keys: *const c_void, values: *const c_void, count: usize) -> Object;
    fn xpc_dictionary_set_uint64(dictionary: Object, key: *const c_char, value: u64);
    fn xpc_dictionary_set_string(dictionary: Object, key: *const c_char, value: *const c_char);
    fn xpc_dictionary_set_uuid(dictionary: Object, key: *const c_char, value: *const [u8; 16]);
    fn xpc_dictionary_get_uint64(dictionary: Object, key: *const c_char) -> u64;
    fn xpc_dictionary_get_string(dictionary: Object, key: *const c_char) -> *const c_char;
    fn xpc_release(object: Object);
}

/// What the framework says of an interface.
pub(super) struct Parameters {
    pub mac: String,
    pub mtu: u64,
    pub max_packet_size: u64,
}

/// An interface that has been started. Dropping it stops it.
pub(super) struct Interface {
    interface: NonNull<c_void>,
    queue: Queue,
}

// SAFETY: the handle is not tied to a thread: the framework calls back on a queue whose thread changes, and takes
// calls from any. That no two calls overlap is because `Interface` is not `Sync`.
unsafe impl Send for Interface {}

/// A dispatch queue.
struct Queue(Object);

impl Queue {
    fn new() -> Self {
        // SAFETY: the label is a string that is copied; no attributes are a serial queue.
        Self(unsafe { dispatch_queue_create(c"hyperkit.vmnet".as_ptr(), ptr::null_mut()) })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it was created by us and is released once. Blocks on it keep it alive by themselves.
        unsafe { dispatch_release(self.0) };
    }
}

/// An XPC dictionary of ours.
struct Dictionary(Object);

impl Drop for Dictionary {
    fn drop(&mut self) {
        // SAFETY: it was created by us and is released once; the framework keeps what it needs.
        unsafe { xpc_release(self.0) };
    }
}

impl Interface {
    /// Starts an interface, and waits until it is there; `available` is set whenever there are packets.
    pub fn start(
        mode: &Mode,
        id: Option<Uuid>,
        available: Notifier,
    ) -> Result<(Self, Parameters), VmnetError> {
        let description = describe(mode, id)?;
        let queue = Queue::new();
        let (done, wait) = sync_channel(1);
        let started = handler(move |status, parameters| {
            let parameters = (status == SUCCESS).then(|| read_parameters(parameters));
            // Nobody waits any more if it took too long.
            let _ = done.try_send((status, parameters));
        });
        // SAFETY: dictionary and queue are live; the framework copies the block, whose captures are `Send` and
        // `'static`, and which takes what this handler is documented to take: a status and a dictionary.
        let interface = unsafe { vmnet_start_interface(description.0, queue.0, &started) };
        let (status, parameters) = wait.recv_timeout(PATIENCE).map_err(|_| VmnetError::NoAnswer)?;
        // Without success there is nothing to stop.
        let (Some(interface), Some(parameters)) = (NonNull::new(interface), parameters) else {
            return Err(VmnetError::start(status));
        };
        let interface = Self { interface, queue };
        let callback = handler(move |_, _| available.notify());
        // SAFETY: interface and queue are live, and the block as above.
        let status = unsafe {
            vmnet_interface_set_event_callback(
                interface.interface.as_ptr(),
                PACKETS_AVAILABLE,
                interface.queue.0,
                &callback,
            )
        };
        if status == SUCCESS { Ok((interface, parameters)) } else { Err(VmnetError::start(status)) }
    }

    /// Reads packets into `bytes`, a packet every `size` bytes, and their lengths into `lengths`. Tells how many.
    pub fn read(
        &mut self,
        bytes: &mut [u8],
        size: usize,
        lengths: &mut [usize; BATCH],
    ) -> Result<usize, VmnetError> {
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut pieces = [none; BATCH];
        let none = Packet { size: 0, pieces: ptr::null_mut(), count: 0, flags: 0 };
        let mut packets = [none; BATCH];
        let mut count = 0;
        let places = bytes.chunks_exact_mut(size.max(1)).zip(&mut pieces).zip(&mut packets);
        for ((place, piece), packet) in places {
            *piece = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
            *packet = Packet { size: place.len(), pieces: piece, count: 1, flags: 0 };
            count += 1;
        }
        // SAFETY: the interface is live; the first `count` packets each have one piece, which is a part of `bytes`
        // that no other has; all of them outlive the call.
        let status =
            unsafe { vmnet_read(self.interface.as_ptr(), packets.as_mut_ptr(), &mut count) };
        if status != SUCCESS {
            return Err(VmnetError::Failed { what: "reading", status });
        }
        for (length, packet) in lengths.iter_mut().zip(&packets) {
            *length = packet.size.min(size);
        }
        Ok(usize::try_from(count).unwrap_or(0).min(BATCH))
    }

    /// Writes a packet; `false` if there is no room for it now.
    pub fn write(&mut self, frame: Buffers<'_>) -> Result<bool, VmnetError> {
        let pieces = frame.iovecs();
        let mut packet = Packet {
            size: frame.total(),
            pieces: pieces.as_ptr().cast_mut(),
            count: u32::try_from(pieces.len()).unwrap_or(u32::MAX),
            flags: 0,
        };
        let mut count = 1;
        // SAFETY: the interface is live, and so are the one packet, its pieces and the memory they stand for, which
        // the framework only reads.
        match unsafe { vmnet_write(self.interface.as_ptr(), &mut packet, &mut count) } {
            SUCCESS => Ok(count == 1),
            BUFFER_EXHAUSTED => Ok(false),
            status => Err(VmnetError::Failed { what: "writing", status }),
        }
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        let stopped = RcBlock::new(move |_status: u32| {
            let _ = done.try_send(());
        });
        // SAFETY: interface and queue are live, and this is the last use of the interface; the block is copied.
        let status =
            unsafe { vmnet_stop_interface(self.interface.as_ptr(), self.queue.0, &stopped) };
        if status == SUCCESS {
            // Should it not come, the callback finds a notifier that it shares the ownership of.
            let _ = wait.recv_timeout(PATIENCE);
        }
    }
}

/// A block that may be called on any thread.
fn handler(call: impl Fn(u32, Object) + Send + 'static) -> RcBlock<Started> {
    RcBlock::new(call)
}

fn describe(mode: &Mode, id: Option<Uuid>) -> Result<Dictionary, VmnetError> {
    let (number, bridged) = match mode {
        Mode::Host => (HOST_MODE, None),
        Mode::Shared => (SHARED_MODE, None),
        Mode::Bridged(name) => {
            let bridged = CString::new(name.as_str());
            let bridged = bridged.map_err(|_| VmnetError::NoSuchName(name.clone()))?;
            (BRIDGED_MODE, Some(bridged))
        }
    };
    // SAFETY: an empty dictionary needs neither keys nor values.
    let description = Dictionary(unsafe { xpc_dictionary_create(ptr::null(), ptr::null(), 0) });
    // SAFETY: the dictionary is live, the keys are constant strings of the framework, and values are copied.
    unsafe {
        xpc_dictionary_set_uint64(description.0, vmnet_operation_mode_key, number);
        if let Some(name) = &bridged {
            xpc_dictionary_set_string(
                description.0,
                vmnet_shared_interface_name_key,
                name.as_ptr(),
            );
        }
        if let Some(id) = id {
            xpc_dictionary_set_uuid(description.0, vmnet_interface_id_key, id.as_bytes());
        }
    }
    Ok(description)
}

fn read_parameters(parameters: Object) -> Parameters {
    if parameters.is_null() {
        return Parameters { mac: String::new(), mtu: 0, max_packet_size: 0 };
    }
    // SAFETY: the dictionary is live during the handler's call, and the keys are constant strings; what is missing is
    // zero or null. The string belongs to the dictionary and is copied.
    unsafe {
        let mac = xpc_dictionary_get_string(parameters, vmnet_mac_address_key);
        let mac = if mac.is_null() { c"" } else { CStr::from_ptr(mac) };
        Parameters {
            mac: mac.to_string_lossy().into_owned(),
            mtu: xpc_dictionary_get_uint64(parameters, vmnet_mtu_key),
            max_packet_size: xpc_dictionary_get_uint64(parameters, vmnet_max_packet_size_key),
        }
    }
}
