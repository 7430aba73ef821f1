//! The configuration space of a disk (struct virtio_blk_config, §5.2.4), and the features that its fields go with.

use virtio_bindings::virtio_blk::*;

use super::super::ConfigSpace;
use super::limits;
use crate::disk::{Properties, SECTOR};

// Offsets.
pub(super) const CAPACITY: usize = 0;
pub(super) const WRITEBACK: usize = 32;
const LEN: usize = 60;

/// What a disk offers.
pub(super) fn features(properties: &Properties, read_only: bool, queues: u16) -> u64 {
    let always = [
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
    ];
    let mut bits = always.to_vec();
    if read_only {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_WRITE_ZEROES]);
        if properties.discard {
            bits.push(VIRTIO_BLK_F_DISCARD);
        }
    }
    if queues > 1 {
        bits.push(VIRTIO_BLK_F_MQ);
    }
    bits.into_iter().fold(0, |features, bit| features | 1 << bit)
}

/// The space itself; the driver may write the `writeback` field.
pub(super) fn space(properties: &Properties, sectors: u64, queues: u16) -> ConfigSpace {
    let topology = properties.topology;
    let logical = topology.logical.max(512);
    let blocks = |bytes: u32| bytes / logical;
    let exponent = blocks(topology.physical).max(1).ilog2() as u8;
    let minimum = u16::try_from(blocks(topology.minimum)).unwrap_or(u16::MAX);
    let granularity = topology.physical.max(logical) / SECTOR as u32;

    let mut bytes = Vec::with_capacity(LEN);
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(limits::SEGMENT.to_le_bytes());
    bytes.extend(limits::SEGMENTS.to_le_bytes());
    // Cylinders, heads, sectors: VIRTIO_BLK_F_GEOMETRY is not offered.
    bytes.extend([0; 4]);
    bytes.extend(logical.to_le_bytes());
    // Physical blocks begin at block 0.
    bytes.extend([exponent, 0]);
    bytes.extend(minimum.to_le_bytes());
    bytes.extend(blocks(topology.optimal).to_le_bytes());
    // The cache is on.
    bytes.extend([1, 0]);
    bytes.extend(queues.to_le_bytes());
    bytes.extend(limits::DISCARD.sectors.to_le_bytes());
    bytes.extend((limits::DISCARD.count as u32).to_le_bytes());
    bytes.extend(granularity.to_le_bytes());
    bytes.extend(limits::WRITE_ZEROES.sectors.to_le_bytes());
    bytes.extend((limits::WRITE_ZEROES.count as u32).to_le_bytes());
    // Zeroing may give storage back.
    bytes.extend([u8::from(properties.discard), 0, 0, 0]);

    let mut writable = [0; LEN];
    writable[WRITEBACK] = 1;
    ConfigSpace::with_writable(bytes, writable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Topology;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let topology = Topology { logical: 512, physical: 4096, minimum: 65536, optimal: 1 << 20 };
        let properties = Properties { topology, discard: true, ..Properties::default() };
        let space = space(&properties, 0x1_2345_6789, 5);
        let mut bytes = [0xee; LEN + 4];
        space.read(0, &mut bytes);
        let field = |offset: usize, len: usize| {
            let mut value = [0; 8];
            value[..len].copy_from_slice(&bytes[offset..offset + len]);
            u64::from_le_bytes(value)
        };
        let expected = [
            ("capacity", 0, 8, 0x1_2345_6789),
            ("size_max", 8, 4, 1 << 20),
            ("seg_max", 12, 4, 254),
            ("geometry", 16, 4, 0),
            ("blk_size", 20, 4, 512),
            ("physical_block_exp", 24, 1, 3),
            ("alignment_offset", 25, 1, 0),
            ("min_io_size", 26, 2, 128),
            ("opt_io_size", 28, 4, 2048),
            ("writeback", 32, 1, 1),
            ("num_queues", 34, 2, 5),
            ("max_discard_sectors", 36, 4, 4 << 20),
            ("max_discard_seg", 40, 4, 64),
            ("discard_sector_alignment", 44, 4, 8),
            ("max_write_zeroes_sectors", 48, 4, 512 << 10),
            ("max_write_zeroes_seg", 52, 4, 8),
            ("write_zeroes_may_unmap", 56, 1, 1),
            ("behind the end", 60, 4, 0),
        ];
        for (name, offset, len, value) in expected {
            assert_eq!(field(offset, len), value, "{name}");
        }
        assert!(!space.write(0, &[0xff; 32]), "only writeback can be written");
        assert!(space.write(WRITEBACK, &[0]));
        assert!(!space.write(WRITEBACK + 1, &[0xff; 27]));
    }

    #[test]
    fn features_follow_from_what_the_disk_can_do() {
        let bit = |bit: u32| 1u64 << bit;
        let mut properties = Properties::default();
        let plain = features(&properties, false, 1);
        assert_eq!(plain & bit(VIRTIO_BLK_F_DISCARD), 0);
        assert_eq!(plain & (bit(VIRTIO_BLK_F_MQ) | bit(VIRTIO_BLK_F_RO)), 0);
        assert_ne!(plain & bit(VIRTIO_BLK_F_CONFIG_WCE), 0);
        properties.discard = true;
        assert_eq!(features(&properties, false, 1), plain | bit(VIRTIO_BLK_F_DISCARD));
        assert_eq!(features(&properties, false, 2) & !plain & bit(VIRTIO_BLK_F_MQ), 1 << 12);
        let written = [VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_DISCARD];
        let read_only = features(&properties, true, 1);
        assert_eq!(read_only & written.iter().fold(0, |all, &one| all | bit(one)), 0);
        assert_ne!(read_only & bit(VIRTIO_BLK_F_RO), 0);
    }
}
