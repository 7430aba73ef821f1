//! What a disk is to be, in a sentence.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backend::BlockBackend;
use super::engine::Engine;
use super::error::Error;
use super::limit::Limits;
use super::raw::{self, RawFile};
use crate::sys::file::Flush;

/// A disk that a machine is to have.
///
/// ```no_run
/// # fn main() -> Result<(), hyperkit::disk::Error> {
/// use hyperkit::disk::{Disk, Flush};
///
/// let root = Disk::raw("root.img")?;
/// # #[cfg(feature = "qcow2")]
/// let data = Disk::qcow2("data.qcow2")?.backing(Disk::raw("base.img")?).serial("data");
/// let scratch = Disk::raw("/dev/vg0/scratch")?.flush(Flush::None);
/// let media = Disk::raw("install.iso")?.read_only();
/// # Ok(()) }
/// ```
#[must_use = "a disk does nothing until a machine has it"]
pub struct Disk {
    source: Source,
    read_only: bool,
    flush: Flush,
    engine: Engine,
    serial: Option<String>,
    queues: Option<u16>,
    limits: Limits,
}

enum Source {
    Image(Image),
    Backend(Arc<dyn BlockBackend>),
    /// A backing file was named for something that has none.
    #[cfg(feature = "qcow2")]
    Contradiction(&'static str),
}

/// A file, and what is in it.
#[derive(Debug)]
pub(super) enum Image {
    /// The disk's bytes.
    Raw(PathBuf),
    /// QEMU's format, and what is under it.
    #[cfg(feature = "qcow2")]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// What clusters that are not in the file are read from.
        backing: Option<Box<Image>>,
    },
}

impl Disk {
    fn new(source: Source) -> Self {
        Self {
            source,
            read_only: false,
            flush: Flush::default(),
            engine: Engine::default(),
            serial: None,
            queues: None,
            limits: Limits::default(),
        }
    }

    /// A file, or block device, whose bytes are the disk's.
    pub fn raw(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        raw::check_kind(path)?;
        Ok(Self::new(Source::Image(Image::Raw(path.to_owned()))))
    }

    /// An image in QEMU's qcow2 format. A backing file that it names is not opened because it names it: say
    /// [`backing`](Self::backing).
    #[cfg(feature = "qcow2")]
    pub fn qcow2(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        raw::check_kind(path)?;
        Ok(Self::new(Source::Image(Image::Qcow2 { path: path.to_owned(), backing: None })))
    }

    /// Storage of the caller's own.
    pub fn backend(backend: impl BlockBackend + 'static) -> Self {
        Self::new(Source::Backend(Arc::new(backend)))
    }

    /// What a qcow2 image is a difference to. It is opened for reading only; of its options nothing else counts.
    #[cfg(feature = "qcow2")]
    pub fn backing(mut self, backing: Disk) -> Self {
        self.source = match (self.source, backing.source) {
            (Source::Image(Image::Qcow2 { path, .. }), Source::Image(image)) => {
                Source::Image(Image::Qcow2 { path, backing: Some(Box::new(image)) })
            }
            (Source::Image(Image::Qcow2 { .. }), _) => {
                Source::Contradiction("only an image file can be the backing file of another one")
            }
            _ => Source::Contradiction("only a qcow2 image can have a backing file"),
        };
        self
    }

    /// Nothing on it is ever written: the file is opened for reading only, and the guest is told.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// What the guest's flushes do on the host. Storage of the caller's own decides that itself.
    pub fn flush(mut self, flush: Flush) -> Self {
        self.flush = flush;
        self
    }

    /// How requests are carried out on the host; [`Engine::Auto`] unless said otherwise. Storage of the caller's own is
    /// called from threads whatever is said, or at once if it [does not block](BlockBackend::blocks).
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// The serial number that the guest sees, up to 20 bytes; unless it is set, one that stays the same as long as the
    /// file does, whatever its name.
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = Some(serial.into());
        self
    }

    /// How many request queues there are, 1 to 16; one per vCPU, at most 8, unless said otherwise.
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Reads, writes and zeroes no more than so many bytes a second.
    pub fn limit_bytes(mut self, bytes_per_second: u64) -> Self {
        self.limits.bytes = Some(bytes_per_second);
        self
    }

    /// Takes no more than so many requests a second.
    pub fn limit_operations(mut self, operations_per_second: u64) -> Self {
        self.limits.operations = Some(operations_per_second);
        self
    }

    /// What errors call it.
    fn name(&self) -> String {
        match &self.source {
            Source::Image(Image::Raw(path)) => path.display().to_string(),
            #[cfg(feature = "qcow2")]
            Source::Image(Image::Qcow2 { path, .. }) => path.display().to_string(),
            Source::Backend(_) => "a disk with storage of the caller's own".into(),
            #[cfg(feature = "qcow2")]
            Source::Contradiction(_) => "a disk".into(),
        }
    }

    /// What is wrong with the options, if something is.
    fn check(&self) -> Result<(), String> {
        let (most, most_queues) = (OpenDisk::SERIAL, OpenDisk::MOST_QUEUES);
        if let Some(serial) = &self.serial
            && serial.len() > most
        {
            let len = serial.len();
            return Err(format!("a serial number has at most {most} bytes, {serial:?} has {len}"));
        }
        if let Some(queues) = self.queues
            && !(1..=most_queues).contains(&queues)
        {
            return Err(format!("a disk has 1 to {most_queues} queues, not {queues}"));
        }
        for (limit, what) in [(self.limits.bytes, "bytes"), (self.limits.operations, "requests")] {
            if limit == Some(0) {
                return Err(format!("a limit of 0 {what} a second would hang the guest"));
            }
        }
        Ok(())
    }

    /// Opens and locks what was named. A machine does this when it is built; for use without one, see
    /// [`virtio::blk`](crate::virtio::blk).
    pub fn open(self) -> Result<OpenDisk, Error> {
        self.check().map_err(|why| Error::Config(format!("{}: {why}", self.name())))?;
        let target = match self.source {
            Source::Image(Image::Raw(path)) => {
                Target::Raw(Arc::new(RawFile::open(&path, self.read_only, self.flush)?))
            }
            #[cfg(feature = "qcow2")]
            Source::Image(Image::Qcow2 { path, backing }) => {
                let backing = backing.as_deref();
                let image = super::Qcow2::open(&path, backing, self.read_only, self.flush)?;
                Target::Qcow2(Arc::new(image))
            }
            Source::Backend(backend) => Target::Backend(backend),
            #[cfg(feature = "qcow2")]
            Source::Contradiction(why) => return Err(Error::Config(why.into())),
        };
        let properties = target.backend().properties();
        Ok(OpenDisk {
            read_only: self.read_only || properties.read_only,
            serial: self.serial.or(properties.identity).unwrap_or_default(),
            engine: self.engine,
            queues: self.queues,
            limits: self.limits,
            target,
        })
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut disk = f.debug_struct("Disk");
        match &self.source {
            Source::Image(image) => disk.field("image", image),
            _ => disk.field("image", &"(backend)"),
        };
        disk.field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// A disk that is open: what a virtio-blk device is made of.
pub struct OpenDisk {
    pub(crate) target: Target,
    pub(crate) read_only: bool,
    pub(crate) engine: Engine,
    pub(crate) serial: String,
    pub(crate) queues: Option<u16>,
    pub(crate) limits: Limits,
}

impl OpenDisk {
    /// Bytes of a serial number (VIRTIO_BLK_ID_BYTES).
    pub(crate) const SERIAL: usize = 20;
    const MOST_QUEUES: u16 = 16;
}

impl fmt::Debug for OpenDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenDisk").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// The storage, as far as engines make a difference.
#[derive(Clone)]
pub(crate) enum Target {
    Raw(Arc<RawFile>),
    #[cfg(feature = "qcow2")]
    Qcow2(Arc<super::Qcow2>),
    Backend(Arc<dyn BlockBackend>),
}

impl Target {
    pub(crate) fn backend(&self) -> &dyn BlockBackend {
        match self {
            Self::Raw(file) => &**file,
            #[cfg(feature = "qcow2")]
            Self::Qcow2(image) => &**image,
            Self::Backend(backend) => &**backend,
        }
    }
}
