//! The corpus: for each target a few inputs, each of which gets somewhere that chance is slow to find.
//!
//! `cargo run --example seeds` in this folder writes them to `corpus/`; a test compares the two.

use crate::ops::{Encode, unparse};
use crate::{
    arm64_chipset, arm64_exits, arm64_kernel, chipset, dns_dhcp, file, kernel, net_stream, p9,
    qcow2, queue, queue_net, queue_vsock, serial, user_frames, user_tcp, virtio_mmio,
};

/// An input: its target, its name, its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// All of them.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    seeds.extend(virtio_mmio());
    for target in ["queue_rng", "queue_console", "queue_blk"] {
        seeds.extend(queue(target));
    }
    seeds.extend(queue_blk());
    seeds.extend(queue_net());
    seeds.extend(queue_vsock());
    seeds.extend(serial());
    seeds.extend(chipset());
    seeds.extend(arm64_chipset());
    seeds.extend(arm64_exits());
    seeds.extend(kernel());
    seeds.extend(arm64_kernel());
    seeds.extend(net_stream());
    seeds.extend(user_frames());
    seeds.extend(user_tcp());
    seeds.extend(dns_dhcp());
    seeds.extend(qcow2());
    seeds.extend(p9_sequences());
    seeds.extend(p9_messages());
    seeds
}

fn seeds<H: Encode, O: Encode>(
    target: &'static str,
    seeds: impl IntoIterator<Item = (&'static str, H, Vec<O>)>,
) -> impl Iterator<Item = Seed> {
    seeds.into_iter().map(move |(name, head, ops)| (target, name, unparse(&head, &ops)))
}

fn virtio_mmio() -> impl Iterator<Item = Seed> {
    use virtio_mmio::{Head, Op};
    let [rng, console, disk, sockets] = [0, 1, 2, 3].map(|device| Head { device });
    let start = |queue| {
        vec![
            Op::Negotiate { features: 0b111 },
            Op::Queue { queue: 0, size: 8, place: 0 },
            Op::Queue { queue, size: 8, place: 0 },
            Op::Go {},
        ]
    };
    let request = |queue, len| {
        [
            Op::Request { queue, place: 0, len },
            Op::Register { number: 6, value: u32::from(queue) },
            Op::Owner { what: 2 },
        ]
    };
    let chain = |parts: &[&[Op]]| parts.concat();
    seeds(
        "virtio_mmio",
        [
            ("rng-request", rng, chain(&[&start(0), &request(0, 65)])),
            ("console-output", console, chain(&[&start(1), &request(1, 64)])),
            (
                "disk-cache-off-and-on",
                disk,
                chain(&[
                    &start(1),
                    &[Op::Write { offset: 0x120, len: 0, value: 0 }],
                    &request(0, 64),
                    &[Op::Write { offset: 0x120, len: 3, value: u64::MAX }],
                    &[Op::Owner { what: 0 }, Op::Read { offset: 0x120, len: 0 }],
                ]),
            ),
            ("sockets-buffer", sockets, chain(&[&start(1), &request(0, 65), &request(1, 64)])),
            ("console-input-buffer", console, chain(&[&start(1), &request(0, 65)])),
            (
                "paused-kick-reset",
                rng,
                chain(&[
                    &start(0),
                    &[Op::Owner { what: 0 }],
                    &request(0, 65)[..2],
                    &[Op::Register { number: 8, value: 0 }, Op::Owner { what: 1 }],
                    &start(0),
                    &request(0, 65),
                ]),
            ),
            (
                "queue-moves-under-way",
                rng,
                chain(&[
                    &start(0),
                    &[Op::Queue { queue: 0, size: 16, place: 1 }, Op::Kick { queue: 0 }],
                    &request(0, 33),
                    &[Op::Owner { what: 3 }],
                    &start(0),
                ]),
            ),
            (
                "queue-nowhere",
                console,
                vec![
                    Op::Negotiate { features: 0b1001 },
                    Op::Queue { queue: 0, size: 64, place: 4 },
                    Op::Queue { queue: 1, size: 64, place: 3 },
                    Op::Go {},
                    Op::Read { offset: 0x70, len: 3 },
                    Op::Register { number: 8, value: 0x4f },
                    Op::Kick { queue: 1 },
                ],
            ),
            (
                "odd-accesses",
                console,
                vec![
                    Op::Read { offset: 0x100, len: 0 },
                    Op::Read { offset: 0x104, len: 7 },
                    Op::Write { offset: 0x70, len: 1, value: 1 },
                    Op::Write { offset: 0x71, len: 3, value: 1 },
                    Op::Write { offset: 0x70, len: 7, value: 1 },
                    Op::Write { offset: 0x108, len: 3, value: u64::from(u32::MAX) },
                    Op::Read { offset: 0x1ff, len: 7 },
                    Op::Poke { at: 0x2_0000, len: 7, value: u64::MAX },
                ],
            ),
        ],
    )
}

fn queue(target: &'static str) -> impl Iterator<Item = Seed> {
    use queue::{Head, Op};
    let plain = Head { features: 0, size: 3, typed: 0 };
    let all = Head { features: 7, size: 6, typed: 3 };
    let chain =
        |queue, split, len, how| Op::Chain { queue, head: 0, count: 3, split, len, place: 0, how };
    let describe = |table, index, flags, next| Op::Describe {
        table,
        index,
        place: 0,
        offset: 0,
        len: 64,
        wide: 0,
        flags,
        next,
    };
    let (kick, settle) = (|queue| Op::Kick { queue }, Op::Settle {});
    seeds(
        target,
        [
            ("input", plain, vec![chain(0, 0, 100, 0), kick(0), settle]),
            ("output", plain, vec![chain(1, 3, 100, 0), kick(1), settle]),
            (
                "indirect",
                all,
                vec![chain(0, 0, 4096, 1), kick(0), settle, chain(1, 2, 9, 1), kick(1)],
            ),
            (
                "one-after-the-other",
                all,
                vec![
                    Op::Notifications { queue: 0, flags: 1, used_event: 1 },
                    chain(0, 0, 10, 0),
                    kick(0),
                    chain(0, 0, 20, 0),
                    Op::Notifications { queue: 0, flags: 0, used_event: 2 },
                    kick(0),
                    settle,
                ],
            ),
            (
                "loop",
                plain,
                vec![
                    describe(0, 0, 3, 1),
                    describe(0, 1, 3, 0),
                    Op::Offer { queue: 0, head: 0 },
                    kick(0),
                    settle,
                    Op::Mend { features: 3 },
                    chain(0, 0, 16, 0),
                    kick(0),
                ],
            ),
            (
                "indirect-in-indirect",
                all,
                vec![
                    describe(2, 0, 4, 0),
                    Op::Describe {
                        table: 0,
                        index: 0,
                        place: 4,
                        offset: 0,
                        len: 16,
                        wide: 0,
                        flags: 4,
                        next: 0,
                    },
                    Op::Offer { queue: 0, head: 0 },
                    kick(0),
                    settle,
                    Op::Mend { features: 7 },
                ],
            ),
            (
                "twice-in-flight-and-jump",
                plain,
                vec![
                    chain(0, 0, 64, 0),
                    Op::Offer { queue: 0, head: 0 },
                    Op::Slot { queue: 0, slot: 2, head: 7 },
                    kick(0),
                    settle,
                    Op::Index { queue: 0, index: 0x8000 },
                    kick(0),
                    settle,
                    Op::Restart { features: 1 },
                    chain(0, 0, 64, 0),
                    kick(0),
                ],
            ),
            (
                "around-the-ends-of-memory",
                plain,
                vec![
                    Op::Describe {
                        table: 0,
                        index: 0,
                        place: 5,
                        offset: 0x7ff0,
                        len: 32,
                        wide: 0,
                        flags: 2,
                        next: 0,
                    },
                    Op::Offer { queue: 0, head: 0 },
                    kick(0),
                    settle,
                    Op::Mend { features: 0 },
                    Op::Describe {
                        table: 0,
                        index: 1,
                        place: 10,
                        offset: 0x7fff,
                        len: 0xffff,
                        wide: 16,
                        flags: 2,
                        next: 0,
                    },
                    Op::Offer { queue: 0, head: 1 },
                    kick(0),
                ],
            ),
            (
                "buffer-over-the-rings",
                plain,
                vec![
                    Op::Chain {
                        queue: 0,
                        head: 0,
                        count: 1,
                        split: 0,
                        len: 0x3000,
                        place: 2,
                        how: 0,
                    },
                    kick(0),
                    settle,
                    Op::Poke { place: 2, offset: 0x1002, len: 1, value: 9 },
                    kick(0),
                ],
            ),
        ],
    )
}

fn queue_net() -> impl Iterator<Item = Seed> {
    use queue_net::{Head, Op};
    let head = |without, seed| Head { size: 6, seed, without };
    let kick = |queue| Op::Kick { queue };
    let post = |queue, count, len, how| Op::Post { queue, count, len, how };
    let send = |gso_type, sizes, len| Op::Send {
        queue: 1,
        flags: 1,
        gso_type,
        sizes,
        csum: 34 | 16 << 16,
        len,
    };
    let traffic = |len: u16, how: u8| {
        vec![
            post(0, 15, len, how),
            kick(0),
            Op::Host { frames: 200, wake: 1 },
            send(0, 0, 90),
            send(1, 54 | 1448 << 16, 4000),
            send(0, 0, 4000),
            send(1, 0, 4000),
            send(5, 54 | 1448 << 16, 0),
            kick(1),
            Op::Settle {},
            post(0, 15, len, how),
            kick(0),
            Op::Host { frames: 50, wake: 7 },
            Op::Settle {},
        ]
    };
    let command = |class, command, len, value| Op::Command { class, command, len, value };
    let commands = vec![
        command(0, 0, 1, 1),
        command(1, 0, 8, 0),
        command(1, 0, 14, 1),
        command(1, 0, 8, 0xffff_ffff),
        command(1, 1, 6, 0x52),
        command(4, 0, 2, 2),
        command(4, 0, 2, 3),
        command(5, 0, 8, 0),
        command(9, 9, 255, 9),
        kick(4),
        Op::Settle {},
    ];
    let owner = |what| Op::Owner { what };
    seeds(
        "queue_net",
        [
            ("large-buffers", head(0, 3), traffic(0xff00, 0)),
            ("small-buffers", head(0, 5), traffic(2000, 1)),
            ("tiny-buffers", head(0, 7), traffic(13, 0)),
            ("too-small-buffers", head(0, 9), traffic(11, 0)),
            ("not-mergeable", head(1 << 15, 11), traffic(2000, 0)),
            ("nothing-negotiated", head(u32::MAX, 13), traffic(2000, 0)),
            ("commands", head(0, 15), [commands.clone(), traffic(2000, 0)].concat()),
            (
                "pauses-and-resets",
                head(0, 17),
                [
                    traffic(2000, 0),
                    vec![owner(0), post(0, 9, 2000, 0), kick(0), owner(2), owner(1)],
                    vec![Op::Restart { without: 1 << 22 }],
                    traffic(2000, 1),
                    vec![owner(3), Op::Index { queue: 0, index: 999 }, kick(0)],
                    commands,
                ]
                .concat(),
            ),
        ],
    )
}

fn queue_blk() -> impl Iterator<Item = Seed> {
    use queue::{Head, Op};
    // In memory, in a file through io_uring and threads, only to be read.
    let [memory, ring, threads, read_only] =
        [0, 2, 3, 6].map(|typed| Head { features: 7, size: 6, typed });
    let plain = Head { features: 0, size: 4, typed: 3 };
    let ask = |head, kind, sector, len, how| Op::Request { queue: 0, head, kind, sector, len, how };
    let (kick, settle) = (Op::Kick { queue: 0 }, Op::Settle {});
    // Every kind, in the usual shape and in the other ones.
    let every = |how| {
        let (extent, unmap) = (how | 4, how | 12);
        vec![
            ask(0, 1, 7, 1024, how),
            ask(3, 0, 7, 1024, how),
            ask(6, 2, 0, 0, how),
            ask(9, 3, 0, 20, how),
            kick,
            settle,
            ask(12, 4, 7, 1, extent),
            ask(15, 5, 8, 9, extent),
            ask(18, 5, 0, 2048, unmap),
            ask(21, 99, 0, 0, how),
            kick,
            settle,
        ]
    };
    seeds(
        "queue_blk",
        [
            ("every-kind", memory, every(0)),
            ("every-kind-in-a-file", ring, every(0)),
            ("every-kind-by-threads", threads, every(2)),
            ("every-kind-read-only", read_only, every(0)),
            ("nothing-negotiated", plain, every(0)),
            ("one-by-one-indirect", ring, {
                let pairs = every(3).into_iter().filter(|op| matches!(op, Op::Request { .. }));
                pairs.flat_map(|op| [op, kick, settle]).collect()
            }),
            (
                "beyond-the-end",
                memory,
                vec![
                    ask(0, 0, 2047, 1024, 0),
                    ask(3, 1, u64::MAX, 512, 0),
                    ask(6, 4, u64::MAX, 1, 4),
                    ask(9, 5, 1 << 55, 0xffff, 12),
                    ask(12, 0, 0, 513, 2),
                    kick,
                    settle,
                ],
            ),
            (
                "reset-under-way",
                ring,
                vec![
                    ask(0, 0, 0, 0xfe00, 0),
                    ask(3, 1, 200, 0xfe00, 0),
                    ask(6, 5, 0, 2048, 4),
                    ask(9, 2, 0, 0, 0),
                    kick,
                    Op::Restart { features: 7 },
                    ask(0, 1, 0, 512, 0),
                    kick,
                    ask(0, 1, 0, 512, 0),
                    kick,
                    Op::Mend { features: 3 },
                    ask(0, 0, 0, 512, 1),
                    kick,
                ],
            ),
        ],
    )
}

fn queue_vsock() -> impl Iterator<Item = Seed> {
    use queue_vsock::{Head, Op};
    let head = |connections| Head { size: 6, connections, how: 0 };
    let send = |ports, op, flags, len| Op::Send { ports, op, flags, len, lie: 0 };
    let host = |what, len| Op::Host { which: 0, what, len };
    let post = Op::Post { count: 40, len: 4095 };
    let settle = Op::Settle {};
    // A stream is at port 0, messages are at port 16.
    let open = |ports| vec![post, send(ports, 1, 0, 0), settle, Op::Accept {}];
    let talk = |ports| {
        vec![
            send(ports, 5, 0, 5000),
            send(ports, 5, 1, 3000),
            settle,
            host(0, 9999),
            host(1, 3000),
            host(1, 3000),
            settle,
            post,
            send(ports, 6, 0, 0),
            send(ports, 7, 0, 0),
            settle,
        ]
    };
    let end = |ports| vec![send(ports, 4, 2, 0), settle, host(0, 99), host(2, 0), settle];
    let chain = |parts: &[Vec<Op>]| parts.concat();
    // More than a socket takes, with room for what the device says to that now and then.
    let full: Vec<Op> = (0..10)
        .flat_map(|_| [vec![post], [send(0, 5, 0, 8000), settle].repeat(20)].concat())
        .collect();
    let bends = |ports| {
        let bent = |field| Op::Bend { ports, op: 5, len: 100, field, value: 0xffff_fff0 };
        (0..10).flat_map(|field| [bent(field), settle]).collect::<Vec<_>>()
    };
    seeds(
        "queue_vsock",
        [
            ("stream", head(7), chain(&[open(0), talk(0), end(0)])),
            ("messages", head(7), chain(&[open(16), talk(16), end(16)])),
            (
                "called",
                head(7),
                chain(&[
                    vec![post, Op::Call { port: 1 }, settle],
                    vec![Op::Answer { how: 0 }, settle, Op::Accept {}],
                    talk(28),
                    end(28),
                ]),
            ),
            // The answer was sent before the harness has seen the call.
            (
                "answered-early",
                head(7),
                vec![
                    post,
                    Op::Call { port: 1 },
                    Op::Bend { ports: 28, op: 2, len: 0, field: 2, value: 1 },
                    settle,
                    Op::Accept {},
                    host(1, 10),
                    settle,
                    settle,
                ],
            ),
            ("full", head(1), chain(&[open(0), full.clone(), vec![host(0, 65535), settle]])),
            ("left-full", head(0), chain(&[open(0), full, vec![send(0, 4, 3, 0)], open(1)])),
            ("host-leaves", head(7), chain(&[open(0), talk(0), vec![host(4, 0), settle], talk(0)])),
            ("more-than-there-may-be", head(1), chain(&[open(0), open(1), open(2), open(3)])),
            ("bent", head(7), chain(&[open(0), bends(0), open(1), bends(1)])),
            (
                "no-buffers",
                head(3),
                vec![send(0, 1, 0, 0), send(24, 1, 0, 0), send(0, 7, 0, 0), settle, post, settle],
            ),
            (
                "resets",
                head(7),
                chain(&[
                    open(0),
                    vec![Op::Owner { what: 2 }, settle],
                    open(0),
                    vec![Op::Owner { what: 0 }, send(0, 5, 0, 9), Op::Restart { how: 1 }],
                    open(0),
                    vec![Op::Owner { what: 3 }, settle],
                    vec![Op::Offer { queue: 1, head: 3, index: 1 }, settle],
                ]),
            ),
        ],
    )
}

fn serial() -> impl Iterator<Item = Seed> {
    use serial::{Head, Op};
    let [alone, typed, arm] = [0, 1, 3].map(|kind| Head { kind });
    let set = |offset, value| Op::Write { offset, len: 1, value };
    let out = |offset, value| Op::Write { offset, len: 0, value };
    let read = |offset| Op::Read { offset, len: 0 };
    seeds(
        "serial",
        [
            (
                "output",
                alone,
                vec![
                    out(3, 0x80),
                    out(0, 1),
                    out(1, 0),
                    out(3, 3),
                    out(2, 7),
                    out(4, 0xb),
                    out(1, 2),
                    out(0, 0x68),
                    read(2),
                    read(5),
                    out(0, 0x69),
                ],
            ),
            (
                "interrupts",
                typed,
                vec![
                    Op::Type { count: 200, first: 0 },
                    out(4, 0xb),
                    out(1, 1),
                    read(2),
                    read(5),
                    read(0),
                    read(0),
                    read(2),
                    out(1, 0),
                    out(1, 1),
                ],
            ),
            (
                "loopback-and-rts",
                typed,
                vec![
                    Op::Type { count: 3, first: 0x41 },
                    out(1, 1),
                    out(4, 0x1b),
                    out(0, 0x55),
                    read(5),
                    read(0),
                    out(4, 0x9),
                    Op::Type { count: 70, first: 0x61 },
                    out(4, 0xb),
                    read(0),
                    Op::Reset {},
                    read(0),
                ],
            ),
            (
                "pl011-interrupts",
                arm,
                vec![
                    Op::Type { count: 200, first: 0 },
                    set(0x2c, 0x70),
                    set(0x30, 0xb01),
                    set(0x38, 0x50),
                    read(0x3c),
                    read(0x18),
                    read(0),
                    read(0),
                    set(0x44, 0x7ff),
                    set(0x38, 0),
                    read(0),
                    set(0x38, 0x70),
                    set(0, 0x68),
                ],
            ),
            (
                "pl011-loopback-and-rts",
                arm,
                vec![
                    set(0x38, 0x10),
                    set(0x30, 0xb81),
                    Op::Type { count: 3, first: 0x41 },
                    set(0, 0x55),
                    set(0, 0x56),
                    read(4),
                    read(0),
                    set(0x30, 0x301),
                    Op::Type { count: 70, first: 0x61 },
                    set(0x30, 0xb01),
                    read(0),
                    Op::Reset {},
                    read(0xfc),
                ],
            ),
            (
                "pl011-polling",
                arm,
                [vec![Op::Type { count: 9, first: 1 }], vec![read(0x18); 20]].concat(),
            ),
            ("polling", typed, [vec![Op::Type { count: 9, first: 1 }], vec![read(5); 20]].concat()),
            (
                "wide-accesses",
                typed,
                vec![
                    Op::Write { offset: 0, len: 7, value: 0x1b03_0741 },
                    Op::Read { offset: 0, len: 7 },
                    Op::Read { offset: 6, len: 3 },
                    Op::Write { offset: 9, len: 3, value: 0 },
                ],
            ),
        ],
    )
}

fn arm64_exits() -> impl Iterator<Item = Seed> {
    use arm64_exits::{Head, Op, RAM};
    let [one, two, many] = [0, 1, 19].map(|cpus| Head { cpus, frequency: 24_000_000 });
    let [hvc32, hvc64] = [0, 2];
    let call =
        |vcpu, how, function, [x1, x2, x3]: [u64; 3]| Op::Call { vcpu, how, function, x1, x2, x3 };
    let access = |how, register| Op::Access { vcpu: 0, how, register, address: 0x0900_0018 };
    let set = |register, value| Op::Set { vcpu: 0, register, value };
    let system = |register, rt| Op::SysReg { vcpu: 0, register, rt };
    seeds(
        "arm64_exits",
        [
            (
                "loads-and-stores",
                one,
                vec![
                    set(1, 0x8877_6655_4433_22f1),
                    access(16 | 3, 1),
                    access(0, 2),
                    access(4, 3),
                    access(4 | 8, 4),
                    access(4 | 8 | 1, 5),
                    access(4 | 8 | 2, 6),
                    access(3 | 8, 31),
                    access(16 | 2, 31),
                    access(3 | 8, 7),
                ],
            ),
            (
                "no-access-to-take-apart",
                one,
                vec![
                    set(33, 0xffff_8000_0801_0800),
                    set(34, 0x30d0_0800),
                    // Not decoded, cache maintenance, page tables nowhere, external abort.
                    Op::Class { vcpu: 0, class: 0x24, iss: 0x47, address: 0x1000 },
                    Op::Class { vcpu: 0, class: 0x24, iss: 0x147, address: 0x1000 },
                    Op::Class { vcpu: 0, class: 0x24, iss: 0x87, address: 0x1000 },
                    Op::Class { vcpu: 0, class: 0x24, iss: 0x180_0010, address: 0x1000 },
                    Op::Class { vcpu: 0, class: 0x20, iss: 0x07, address: 0x2000 },
                    Op::Class { vcpu: 0, class: 0x19, iss: 0, address: 0 },
                    Op::Exit { vcpu: 0, syndrome: 0xf200_0000, address: 0 },
                    Op::Exit { vcpu: 0, syndrome: u64::MAX, address: u64::MAX },
                ],
            ),
            (
                "processors-on-and-off",
                two,
                vec![
                    call(0, hvc32, 0, [0; 3]),
                    call(0, hvc32, 10, [0xc400_0003, 0, 0]),
                    call(0, hvc64, 4, [1, 0, 0]),
                    call(0, hvc64, 3, [1, RAM.0 + 0x1000, 7]),
                    call(0, hvc64, 3, [1, RAM.0, 7]),
                    Op::Access { vcpu: 1, how: 16, register: 0, address: 0 },
                    call(0, hvc64, 3, [1, RAM.0, 7]),
                    call(1, hvc32, 2, [0; 3]),
                    call(0, hvc64, 3, [1, 2, 7]),
                    call(0, hvc32 | 1, 3, [1, RAM.0, u64::MAX]),
                    call(1, hvc32 | 1, 1, [0; 3]),
                    call(1, hvc32, 9, [0; 3]),
                    call(0, hvc32, 8, [0; 3]),
                ],
            ),
            (
                "clusters",
                many,
                vec![
                    call(0, hvc64, 3, [0x103, RAM.0, 1]),
                    call(0, hvc64, 4, [0x100, 1, 0]),
                    call(19, hvc64, 3, [0xf, RAM.0 + RAM.1 - 4, 2]),
                    call(15, hvc64, 3, [0x10, RAM.0, 2]),
                    call(15, hvc64, 4, [0, 4, 0]),
                    Op::Pass { ticks: 1 },
                    call(0, hvc64, 4, [0, 3, 0]),
                ],
            ),
            (
                "system-registers",
                one,
                vec![
                    set(0, 1),
                    // OSLAR_EL1, OSLSR_EL1, MDSCR_EL1, PMCR_EL0, CNTPCT_EL0, an ID register, one that is not there.
                    system(0x8084, 32 | 31),
                    system(0x808c, 1),
                    system(0x8084, 32),
                    system(0x808c, 1),
                    system(0x8012, 32),
                    system(0xdce0, 2),
                    Op::Pass { ticks: 1000 },
                    system(0xdf01, 3),
                    system(0xc03f, 31),
                    system(0xc787, 32),
                ],
            ),
            (
                "waits",
                one,
                vec![
                    set(5, 48_000_000),
                    Op::Wait { vcpu: 0, how: 0, register: 0, control: 1, compare: 24_000_000 },
                    Op::Wait { vcpu: 0, how: 1, register: 0, control: 3, compare: 0 },
                    Op::Pass { ticks: u64::MAX - 1 },
                    Op::Wait { vcpu: 0, how: 2, register: 5, control: 5, compare: u64::MAX },
                    Op::Wait { vcpu: 0, how: 3, register: 31, control: 1, compare: 1 },
                ],
            ),
        ],
    )
}

fn chipset() -> impl Iterator<Item = Seed> {
    use chipset::{Head, Op};
    let now = Head { memory: 512, time: 1_800_000_000 };
    let [cmos, _, reset, acpi] = [0, 1, 2, 3_u8];
    let outw = |offset, value| Op::Write { device: acpi, offset, len: 1, value };
    let set = |index, value| Op::WriteClock { index, value };
    seeds(
        "chipset",
        [
            (
                "alarm",
                now,
                vec![
                    set(0x1, 0xff),
                    set(0x3, 0xc0),
                    set(0x5, 0x23),
                    set(0xb, 0x32),
                    Op::Pass { nanos: 61_000_000_000 },
                    Op::ReadClock { index: 0xc },
                    set(0xb, 0x12),
                    Op::Pass { nanos: 1_000_000_000 },
                    Op::ReadClock { index: 0xc },
                ],
            ),
            (
                "set-the-date",
                now,
                vec![
                    set(0xb, 0x82),
                    set(0x7, 0x31),
                    set(0x8, 0x2),
                    set(0x9, 0xff),
                    set(0x32, 0x99),
                    set(0x4, 0x8c),
                    set(0xa, 0x76),
                    set(0xb, 0x00),
                    Op::Pass { nanos: 500_000_000 },
                    set(0xa, 0x26),
                    Op::ReadClock { index: 0x7 },
                ],
            ),
            (
                "ends-of-time",
                Head { memory: u16::MAX, time: i64::MIN as u64 + 1 },
                vec![
                    set(0xb, 0x22),
                    Op::SetHost { seconds: i64::MAX as u64 },
                    Op::ReadClock { index: 0x32 },
                    Op::Pass { nanos: i64::MIN as u64 },
                    Op::ReadClock { index: 0xa },
                    Op::Read { device: acpi, offset: 8, len: 3 },
                ],
            ),
            (
                "power-button",
                now,
                vec![
                    outw(2, 0x120),
                    Op::Press {},
                    Op::Read { device: acpi, offset: 0, len: 7 },
                    outw(0, 0x100),
                    Op::Press {},
                    Op::Reset { device: acpi },
                    outw(4, 0x3401),
                ],
            ),
            (
                "resets",
                now,
                vec![
                    Op::Write { device: 1, offset: 0, len: 0, value: 0xfe },
                    Op::Write { device: reset, offset: 0, len: 3, value: 0xe },
                    Op::Read { device: cmos, offset: 0, len: 7 },
                    Op::Read { device: 1, offset: 1, len: 7 },
                ],
            ),
        ],
    )
}

fn arm64_chipset() -> impl Iterator<Item = Seed> {
    use arm64_chipset::{Head, Op};
    let now = Head { time: 1_800_000_000 };
    let [clock, pins] = [0, 1];
    let set = |device, offset, value| Op::Write { device, offset, len: 3, value };
    let read = |device, offset| Op::Read { device, offset, len: 3 };
    let [second, day] = [1_000_000_000, 86_400_000_000_000];
    seeds(
        "arm64_chipset",
        [
            (
                "alarm",
                now,
                vec![
                    set(clock, 4, 1_800_000_060),
                    set(clock, 0x1c, 1),
                    set(clock, 0x10, 1),
                    Op::Pass { nanos: 59 * second },
                    Op::Pass { nanos: second },
                    read(clock, 0x14),
                    set(clock, 0x1c, 1),
                    Op::Pass { nanos: day },
                ],
            ),
            (
                "set-the-time",
                now,
                vec![
                    set(clock, 8, u64::from(u32::MAX)),
                    set(clock, 4, 2),
                    set(clock, 0x10, 1),
                    Op::Pass { nanos: day },
                    Op::SetHost { seconds: 0 },
                    read(clock, 0),
                    Op::Reset { device: clock },
                ],
            ),
            (
                "ends-of-time",
                Head { time: i64::MIN as u64 + 1 },
                vec![
                    set(clock, 0x10, 1),
                    Op::SetHost { seconds: i64::MAX as u64 },
                    read(clock, 0),
                    Op::Pass { nanos: i64::MIN as u64 },
                    set(clock, 8, 0),
                ],
            ),
            (
                "power-button",
                now,
                vec![
                    set(pins, 0x408, 0xff),
                    set(pins, 0x410, 0xff),
                    Op::Press {},
                    Op::Press {},
                    set(pins, 0x41c, 0xff),
                    read(pins, 0x3fc),
                    read(pins, 0x418),
                    read(pins, 0x20),
                ],
            ),
            (
                "levels",
                now,
                vec![
                    set(pins, 0x404, 0xff),
                    set(pins, 0x410, 0x08),
                    Op::Press {},
                    set(pins, 0x40c, 0xff),
                    read(pins, 0x3fc),
                    set(pins, 0x400, 0xff),
                    set(pins, 0x3fc, 0xff),
                    Op::Reset { device: pins },
                ],
            ),
            (
                "odd-accesses",
                now,
                vec![
                    Op::Read { device: clock, offset: 0xfe0, len: 7 },
                    Op::Read { device: pins, offset: 0xfff, len: 0 },
                    Op::Write { device: clock, offset: 1, len: 7, value: u64::MAX },
                    Op::Write { device: pins, offset: 0x3fc, len: 7, value: u64::MAX },
                ],
            ),
        ],
    )
}

fn kernel() -> impl Iterator<Item = Seed> {
    use file::Op;
    use kernel::Head;
    let head = |kind, memory, initrd| Head { kind, memory, cmdline: 40, initrd };
    let field = |at, len, value| Op::Field { at, len, value };
    // In the second program header: `p_paddr`, `p_filesz`, `p_memsz`.
    let (address, in_file, in_memory) = (56 + 24, 56 + 32, 56 + 40);
    let raw = |name, bytes: &[u8]| {
        let mut input = unparse(&head(0, 2, 0), &[] as &[Op]);
        input.extend(bytes);
        ("kernel", name, input)
    };
    seeds(
        "kernel",
        [
            ("bzimage", head(1, 2, 3), vec![]),
            ("vmlinux", head(2, 2, 3), vec![]),
            ("vmlinux-pvh", head(3, 5, 3), vec![]),
            ("bzimage-too-large", head(1, 1, 1), vec![field(0x6f, 3, 0x3000_0000)]),
            ("bzimage-truncated", head(1, 2, 0), vec![Op::Cut { len: 0x500 }]),
            ("bzimage-low", head(1, 2, 0), vec![field(0x67, 7, 0xe_0000)]),
            ("vmlinux-over-the-tables", head(2, 2, 0), vec![field(address, 7, 0xf_0000)]),
            ("vmlinux-over-itself", head(2, 2, 255), vec![field(address, 7, 0x100_0010)]),
            ("vmlinux-at-the-end", head(2, 2, 9), vec![field(address, 7, 0x3ff_fff0)]),
            (
                "vmlinux-larger-than-memory",
                head(3, 4, 9),
                vec![field(in_file, 7, u64::MAX), field(in_memory, 7, u64::MAX)],
            ),
            ("vmlinux-for-arm", head(2, 2, 0), vec![Op::Patch { at: 18, len: 1, value: 183 }]),
        ],
    )
    .chain([raw("gzip", b"\x1f\x8b\x08"), raw("nothing", b"")])
}

fn arm64_kernel() -> impl Iterator<Item = Seed> {
    use arm64_kernel::Head;
    use file::Op;
    let head = |kind, initrd| Head { kind, memory: 2, tree: 1000, initrd };
    let field = |at, value| Op::Field { at, len: 7, value };
    // `text_offset` and `image_size`.
    let (offset, size) = (8, 16);
    // A window of 128 KiB, a block with the header alone, and blocks of a byte that is repeated.
    let window = Op::Patch { at: 5, len: 0, value: 7 << 3 };
    let first = Op::Patch { at: 6, len: 2, value: 0x40 << 3 };
    let bomb = (0..100).map(|n| Op::Patch { at: 0x49 + 4 * n, len: 3, value: 0x0110_0002 });
    seeds(
        "arm64_kernel",
        [
            ("image", head(1, 3), vec![]),
            ("gzip", head(2, 3), vec![]),
            ("zstd", head(3, 3), vec![]),
            ("zboot-gzip", head(4, 3), vec![]),
            ("zboot-zstd", head(5, 3), vec![]),
            ("zstd-raw", head(6, 3), vec![]),
            ("old", head(6, 0), vec![field(size, 0)]),
            ("behind-the-start", head(6, 3), vec![field(offset, 0x8_0000)]),
            ("before-memory", head(1, 3), vec![field(offset, 0_u64.wrapping_sub(0x4000_0000))]),
            ("beyond-memory", head(6, 3), vec![field(size, u64::MAX)]),
            ("smaller-than-its-file", head(6, 9), vec![field(size, 0x1000)]),
            (
                "no-room-for-the-initrd",
                Head { memory: 3, ..head(1, 255) },
                vec![field(size, 0x3f_ff00)],
            ),
            ("truncated", head(5, 0), vec![Op::Cut { len: 0x300 }]),
            (
                "zboot-beyond-its-end",
                head(4, 0),
                vec![Op::Patch { at: 12, len: 3, value: 1 << 20 }],
            ),
            ("zboot-lzma", head(4, 0), vec![Op::Patch { at: 24, len: 7, value: 0x616d_7a6c }]),
            ("bomb", head(6, 3), [vec![window, first], bomb.collect()].concat()),
            (
                "pe",
                head(1, 3),
                vec![
                    Op::Patch { at: 0, len: 1, value: 0x5a4d },
                    Op::Patch { at: 0x3c, len: 3, value: 0x40 },
                    Op::Patch { at: 0x40, len: 7, value: 0x0001_aa64_0000_4550 },
                    Op::Patch { at: 0x54, len: 1, value: 0 },
                    Op::Patch { at: 0x68, len: 7, value: 0x1000_0000_1000 },
                ],
            ),
        ],
    )
    .chain([("arm64_kernel", "nothing", unparse(&head(0, 0), &[] as &[Op]))])
}

fn net_stream() -> impl Iterator<Item = Seed> {
    use net_stream::{Head, Op};
    let [qemu, vpnkit, server] = [0, 1, 2].map(|peer| Head { peer });
    let all = Op::Receive { count: 255, space: u16::MAX };
    let send = |length| Op::Send { length, pieces: 3, value: 5 };
    let read = Op::Read { count: u16::MAX };
    let frame = |length| Op::Frame { length, value: 6 };
    let reply = |kind, mtu, size| Op::Reply { kind, mtu, size, mac: 1 };
    let init = Op::Init { version: 22 };
    seeds(
        "net_stream",
        [
            ("both-ways", qemu, vec![frame(60), send(60), all, read, frame(u16::MAX), all]),
            (
                "in-pieces",
                qemu,
                vec![
                    Op::Few { count: 2, bytes: 0 },
                    all,
                    Op::Few { count: 0, bytes: 100 },
                    Op::Bytes { count: 99, value: 1 },
                    all,
                    Op::Bytes { count: 61, value: 0 },
                    all,
                ],
            ),
            ("no-length", qemu, vec![frame(60), Op::Length { length: 65_551 }, all, send(60)]),
            ("longest", qemu, vec![Op::Length { length: 65_550 }, all, frame(9000), send(9000)]),
            (
                "slow",
                qemu,
                [vec![send(u16::MAX); 30], vec![read; 20], vec![send(60); 3], vec![read; 20]]
                    .concat(),
            ),
            ("many", qemu, [vec![frame(0); 30], vec![frame(14); 30], vec![all]].concat()),
            ("small-buffers", qemu, vec![frame(61), Op::Receive { count: 1, space: 60 }, all]),
            ("close", qemu, vec![frame(60), Op::Bytes { count: 3, value: 0 }, Op::Close {}, all]),
            ("vpnkit", vpnkit, vec![frame(60), send(14), all, read, send(1550), send(1551), read]),
            ("vpnkit-empty", vpnkit, vec![Op::Length { length: 0 }, frame(u16::MAX), all]),
            ("server", server, vec![init, reply(1, 1500, 1550), frame(60), all, send(60), read]),
            ("server-other-version", server, vec![Op::Init { version: 1 }, Op::Close {}]),
            ("server-refuses", server, vec![init, reply(2, 255, 0)]),
            ("server-small", server, vec![init, reply(1, 1500, 81)]),
            ("server-other", server, vec![Op::Bytes { count: 400, value: 86 }]),
        ],
    )
}

fn user_tcp() -> impl Iterator<Item = Seed> {
    use user_tcp::{ADVANCE, FAR_OFF, Head, Op, PARTIAL, WRONG};
    const WINDOWS: u8 = 1 << 5;
    let [tcp, unix] = [0xc0, 0xc7].map(|mode| Head { offloads: 0, initial: 0xffff_ff00, mode });
    let offloaded = Head { offloads: u16::MAX, ..tcp };
    let segment = |lane, flags, how, sequence: i16, window, length| Op::Segment {
        lane,
        flags,
        how,
        sequence: sequence as u16,
        acknowledged: 0,
        window,
        length,
    };
    let all = Op::Receive { count: 255, space: u16::MAX };
    let open = |lane| {
        let syn = segment(lane, 2, ADVANCE | WINDOWS, 0, 65_000, 0);
        [syn, Op::Turn {}, all, Op::Acknowledge { lane }]
    };
    let data = |lane, length| segment(lane, 0x18, ADVANCE, 0, 65_000, length);
    let write = |lane, length| Op::Write { lane, length };
    let read = |lane| Op::Read { lane, length: u16::MAX };
    let end = |lane, how| Op::End { lane, how };
    let both = |lane: u8| {
        let ends = [write(lane, 9000), all, Op::Acknowledge { lane }, end(lane, 0), all];
        let guest = [segment(lane, 0x11, ADVANCE, 0, 65_000, 0), Op::Turn {}, read(lane), all];
        [&open(lane)[..], &[data(lane, 700), read(lane)], &ends, &guest].concat()
    };
    let after = |lane, ops: &[Op]| [&open(lane)[..], ops].concat();
    let dialed = [
        &[Op::Dial {}, Op::Turn {}, all, segment(3, 0x12, ADVANCE | WINDOWS, 0, 9000, 0)][..],
        &[Op::Acknowledge { lane: 3 }, data(3, 100), read(3), write(3, 5000), all, end(3, 2), all],
    ];
    seeds(
        "user_tcp",
        [
            ("both-ways", tcp, both(0)),
            ("both-ways-unix", unix, both(1)),
            ("both-ways-ipv6", offloaded, both(2)),
            ("from-host", tcp, dialed.concat()),
            (
                "overlaps",
                tcp,
                after(
                    0,
                    &[
                        segment(0, 0x10, 0, 100, 9000, 200),
                        segment(0, 0x10, 0, 0, 9000, 150),
                        segment(0, 0x10, 0, -50, 9000, 400),
                        segment(0, 0x10, FAR_OFF, 0, 9000, 400),
                        all,
                        read(0),
                    ],
                ),
            ),
            (
                "wrong-checksums",
                tcp,
                after(
                    0,
                    &[
                        segment(0, 0x10, WRONG, 0, 9000, 200),
                        segment(0, 4, WRONG, 0, 9000, 0),
                        segment(0, 0x10, PARTIAL | ADVANCE, 0, 9000, 200),
                        read(0),
                    ],
                ),
            ),
            (
                "windows-shrink",
                unix,
                after(
                    0,
                    &[
                        write(0, 60_000),
                        Op::Receive { count: 3, space: u16::MAX },
                        segment(0, 0x10, 0, 0, 100, 0),
                        all,
                        segment(0, 0x10, 0, 0, 0, 0),
                        all,
                        Op::Acknowledge { lane: 0 },
                        all,
                    ],
                ),
            ),
            (
                "nobody-reads",
                unix,
                after(0, &[[data(0, 16_000); 40], [all; 40], [read(0); 40]].concat()),
            ),
            ("repeats", tcp, after(0, &[write(0, 9000), all, segment(0, 0x10, 0, -9000, 9, 0)])),
            ("many", Head { mode: 0, ..tcp }, [open(0), open(1), open(2), open(0)].concat()),
            ("reset-by-host", tcp, after(0, &[data(0, 100), end(0, 3), all, data(0, 100), all])),
            ("every-flag", tcp, (0..=255).map(|flags| segment(0, flags, 0, 0, 9000, 9)).collect()),
            ("driver-goes", unix, after(1, &[data(1, 100), Op::Reset {}, data(1, 100), all])),
        ],
    )
}

fn user_frames() -> impl Iterator<Item = Seed> {
    use user_frames::{Head, Op};
    let [plain, offloaded] = [0, u16::MAX].map(|offloads| Head { offloads });
    let send = Op::Send { times: 0, flags: 0 };
    let all = Op::Receive { count: 255, space: u16::MAX };
    let host = Op::Host { length: 500, end: 0 };
    let segment = |flags, sequence, length| Op::Segment {
        flags,
        sequence,
        acknowledged: 0,
        window: 9000,
        length,
    };
    let answered = |kind| vec![Op::Good { kind }, send, host, Op::Turn {}, all];
    let every = (0..12).flat_map(answered).collect();
    // SYN, then data both ways, then both ends.
    let connection = vec![
        segment(2, 0, 0),
        Op::Turn {},
        all,
        segment(0x10, 1, 0),
        segment(0x18, 1, 700),
        Op::Turn {},
        host,
        all,
        segment(0x10, 701, 0),
        Op::Host { length: 9000, end: 1 },
        all,
        segment(0x11, 701, 0),
        Op::Turn {},
        all,
    ];
    let part = |offset, length, more| Op::Part { ident: 1, offset, length, more };
    seeds(
        "user_frames",
        [
            ("every-sort", plain, every),
            ("datagram", offloaded, answered(1)),
            ("connection", plain, connection.clone()),
            ("connection-offloaded", offloaded, connection),
            ("syn-flood", plain, vec![segment(2, 0, 0); 40]),
            ("parts", plain, vec![part(0, 800, 1), part(100, 800, 0), all]),
            ("parts-overlap", plain, vec![part(0, 800, 1), part(50, 800, 0), part(0, 8, 1)]),
            (
                "question-reset",
                plain,
                vec![Op::Good { kind: 5 }, send, Op::Reset {}, Op::Host { length: 0, end: 2 }, all],
            ),
            (
                "no-room",
                plain,
                vec![
                    Op::Good { kind: 6 },
                    Op::Send { times: 31, flags: 0 },
                    Op::Receive { count: 9, space: 20 },
                ],
            ),
            (
                "options",
                plain,
                vec![
                    Op::Good { kind: 1 },
                    Op::Patch { at: 14, len: 0, value: 0x4f },
                    Op::Seal {},
                    send,
                ],
            ),
        ],
    )
}

fn dns_dhcp() -> impl Iterator<Item = Seed> {
    use dns_dhcp::{DHCP, DNS, REPLY};
    let question = |name: &[u8]| user_frames::question(name);
    let reply = |mut message: Vec<u8>, records: &[u8]| {
        message[2] |= 0x80;
        message[7] = u8::from(!records.is_empty());
        message.extend(records);
        message
    };
    let example = || question(b"\x07example\x03org");
    let address = b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\xcb\0\x71\x07";
    let seeds = [
        ("discover", DHCP, user_frames::dhcp(1)),
        ("request", DHCP, user_frames::dhcp(3)),
        ("inform", DHCP, user_frames::dhcp(8)),
        ("known", DNS, question(b"\x04host\x08internal")),
        ("unknown", DNS, example()),
        ("pointer", DNS, question(b"\x012\x0265\x03168\x03192\x07in-addr\x04arpa")),
        ("loop", DNS, question(b"\xc0\x0c")),
        ("reply", REPLY, reply(example(), address)),
        ("reply-empty", REPLY, reply(example(), b"")),
        ("reply-to-other", REPLY, reply(question(b"\x07example\x03com"), address)),
    ];
    seeds
        .into_iter()
        .map(|(name, service, message)| ("dns_dhcp", name, [vec![service], message].concat()))
}

fn qcow2() -> impl Iterator<Item = Seed> {
    use qcow2::{Head, KINDS, Op, template};
    let kind = |kind| Head { kind, read_only: 0 };
    let reading = |kind| Head { kind, read_only: 1 };
    let write = |sector, count| Op::Write { sector, count, value: 7 };
    let use_it = vec![
        Op::Read { sector: 0, count: 63 },
        write(0, 1),
        write(3, 60),
        Op::Free { sector: 10, count: 20, how: 0 },
        write(130, 63),
        Op::Free { sector: 140, count: 20, how: 2 },
        Op::Flush {},
        Op::Grow { sectors: 300 },
        write(500, 50),
        Op::Close {},
        Op::Read { sector: 490, count: 63 },
        Op::Free { sector: 0, count: 63, how: 1 },
    ];
    let after = |first: Op| [vec![first], use_it.clone()].concat();
    let entry = |table, index, value| after(Op::Entry { table, index, value });
    let named = [
        ("version-2", kind(2), use_it.clone()),
        ("small-refcounts", kind(3), use_it.clone()),
        ("large-clusters", kind(4), use_it.clone()),
        ("bytes-for-refcounts", kind(5), use_it.clone()),
        ("read-only", reading(1), use_it.clone()),
        ("good", kind(1), use_it.clone()),
        // The refcount of the last cluster is 0, and that of many more 1.
        ("nothing-free", kind(1), entry(0, 3, u64::MAX)),
        ("data-is-free", kind(1), entry(0, 1, 1 << 48)),
        ("compressed", kind(1), entry(3, 1, (1 << 62) | (5 * 512))),
        ("compressed-header", kind(1), entry(3, 1, 1 << 62)),
        ("zeros-with-a-place", kind(1), entry(3, 0, 1 << 63 | (5 * 512) | 1)),
        ("data-over-the-header", kind(3), entry(3, 2, 1 << 63)),
        ("data-over-a-table", kind(1), entry(3, 2, 1 << 63 | (4 * 512))),
        ("data-far-away", kind(1), entry(3, 2, 1 << 63 | 1 << 50)),
        ("not-alone", kind(1), entry(3, 0, 5 * 512)),
        ("table-not-alone", kind(1), entry(2, 0, 4 * 512)),
        ("table-over-itself", kind(1), entry(2, 1, 1 << 63 | (3 * 512))),
        ("second-block", kind(1), entry(1, 1, 5 * 512)),
        ("cut", kind(1), after(Op::Cut { len: 5 * 512 + 9 })),
        // Its backing file's name is one that errors tell.
        (
            "backed-by-panicked",
            kind(1),
            vec![
                Op::Patch { at: 8, len: 7, value: 112 },
                Op::Patch { at: 16, len: 3, value: 8 },
                Op::Patch { at: 112, len: 7, value: u64::from_be_bytes(*b"panicked") },
                Op::Read { sector: 0, count: 1 },
            ],
        ),
        ("huge", kind(4), after(Op::Patch { at: 36, len: 3, value: 0 })),
    ];
    let raw = KINDS.iter().enumerate().map(|(number, &kind)| {
        let name = ["file", "file-version-2", "file-bits", "file-4k", "file-1k"][number];
        let mut bytes = vec![0, 0];
        bytes.extend(template(kind));
        ("qcow2", name, bytes)
    });
    seeds("qcow2", named).chain(raw)
}

/// Shares: what programs do with files, and the ways out that there are not.
fn p9_operations() -> [(&'static str, u8, Vec<p9::Op>); 9] {
    use p9::Op;
    const CANARY: &[u8] = p9::CANARY.as_bytes();
    let name = |text: &[u8]| {
        let place = p9::NAMES.iter().position(|name| *name == text);
        place.expect("it is one of the names") as u8
    };
    let further =
        |fid, new_fid, text: &[u8]| Op::Walk { fid, new_fid, count: 1, name: name(text), next: 0 };
    let walk = |new_fid, text: &[u8]| further(0, new_fid, text);
    let to_canary = |new_fid, text: &[u8]| Op::Walk {
        fid: 0,
        new_fid,
        count: 2,
        name: name(text),
        next: name(CANARY),
    };
    let clone = |new_fid| Op::Walk { fid: 0, new_fid, count: 0, name: 0, next: 0 };
    let (read, write) = (Op::Open { fid: 1, flags: 0 }, Op::Open { fid: 1, flags: 2 });
    let bytes = |fid| Op::Read { fid, offset: 0, count: 4096 };
    let entries = |fid| Op::Readdir { fid, cookie: 0, count: 4096 };
    let moved = |what, text: &[u8], next: &[u8]| Op::Move {
        what,
        fid: 0,
        other: 0,
        name: name(text),
        next: name(next),
        flags: 0,
    };
    let make = |what, text: &[u8], target: &[u8]| {
        let (name, target) = (name(text), name(target));
        Op::Make { what, fid: 0, other: 1, name, target, mode: 0o100644 }
    };
    let attribute = |what, new_fid| Op::Attribute {
        what,
        fid: 1,
        new_fid,
        name: name(b"user.name"),
        size: 8,
        flags: 0,
    };
    let lock = |what, process| Op::Lock { what, fid: 1, kind: 1, start: 0, length: 9, process };
    [
        (
            "a-file",
            0,
            vec![
                clone(1),
                Op::Create { fid: 1, name: name(b"new"), flags: 2, mode: 0o644 },
                Op::Write { fid: 1, offset: 9, count: 100 },
                bytes(1),
                Op::Setattr { fid: 1, valid: 0x1ff, mode: 0o600, size: 50, time: 9 },
                Op::Getattr { fid: 1 },
                moved(4, b"new", b"newer"),
                moved(0, b"newer", b""),
                bytes(1),
                Op::Other { what: 1, fid: 1 },
                Op::Move { what: 2, fid: 1, other: 0, name: 0, next: 0, flags: 0 },
            ],
        ),
        ("read-only", 1, vec![walk(1, b"file"), write, read, bytes(1), make(0, b"new", b"")]),
        (
            "folders",
            0,
            vec![make(0, b"new", b""), clone(1), read, entries(1), moved(4, b"folder", b"new")],
        ),
        (
            "out-by-dots",
            0,
            vec![
                walk(1, b".."),
                further(1, 2, CANARY),
                Op::Open { fid: 2, flags: 2 },
                bytes(2),
                read,
                entries(1),
                Op::Create { fid: 1, name: name(b"../outside"), flags: 2, mode: 0o644 },
                moved(4, b"file", b"../outside"),
                moved(4, b"file", b".."),
            ],
        ),
        (
            "out-by-links",
            0,
            vec![
                walk(1, b"way-out"),
                further(1, 2, CANARY),
                read,
                entries(1),
                bytes(2),
                Op::Setattr { fid: 1, valid: 1, mode: 0o777, size: 0, time: 0 },
                walk(3, b"absolute"),
                further(3, 4, CANARY),
                Op::Other { what: 2, fid: 3 },
                make(1, b"new", b"/proc/self/root"),
                to_canary(5, b"new"),
            ],
        ),
        (
            "a-folder-becomes-a-link",
            0,
            vec![
                walk(1, b"folder"),
                moved(4, b"folder", b"newer"),
                make(1, b"folder", b"../outside"),
                further(1, 2, CANARY),
                to_canary(3, b"folder"),
                further(1, 4, b".."),
                entries(4),
            ],
        ),
        // What a guest names itself is no news to it.
        (
            "a-canary-of-its-own",
            0,
            vec![
                make(0, CANARY, b""),
                make(1, b"new", CANARY),
                walk(1, b"new"),
                Op::Other { what: 2, fid: 1 },
                clone(2),
                Op::Open { fid: 2, flags: 0 },
                entries(2),
            ],
        ),
        (
            "attributes-and-locks",
            0,
            vec![
                walk(1, b"file"),
                clone(2),
                attribute(1, 0),
                Op::Write { fid: 1, offset: 0, count: 8 },
                Op::Move { what: 2, fid: 1, other: 0, name: 0, next: 0, flags: 0 },
                walk(1, b"file"),
                attribute(0, 3),
                bytes(3),
                write,
                lock(0, 1),
                lock(1, 2),
            ],
        ),
        (
            "nodes",
            2,
            vec![
                Op::Other { what: 4, fid: 0 },
                Op::Other { what: 3, fid: 0 },
                Op::Make { what: 2, fid: 0, other: 0, name: 3, target: 0, mode: 0o010644 },
                walk(1, b"new"),
                write,
                make(3, b"newer", b""),
                Op::Restart {},
            ],
        ),
    ]
}

fn p9_sequences() -> impl Iterator<Item = Seed> {
    seeds("p9_sequences", p9_operations().map(|(name, how, ops)| (name, p9::Head { how }, ops)))
}

fn p9_messages() -> impl Iterator<Item = Seed> {
    let lie = {
        let mut bytes = p9::version();
        bytes[2] = 1;
        ("lie", [bytes, p9::attach(0)].concat())
    };
    let sequences = p9_operations()
        .map(|(name, _, ops)| (name, ops.into_iter().flat_map(p9::encode).collect()));
    sequences.into_iter().chain([lie]).map(|(name, bytes)| ("p9_messages", name, bytes))
}
