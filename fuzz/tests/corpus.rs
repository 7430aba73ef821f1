//! The corpus, without a fuzzer: what is in it is what the seeds say, and every target survives it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hyperkit_fuzz::{
    arm64_chipset, arm64_exits, arm64_kernel, chipset, dns_dhcp, kernel, net_stream, p9, qcow2,
    queue, queue_net, queue_vsock, seeds, serial, user_frames, user_tcp, virtio_mmio,
};

#[test]
fn the_corpus_is_what_the_seeds_say() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut written = BTreeMap::new();
    for target in fs::read_dir(&corpus).unwrap() {
        let target = target.unwrap();
        for file in fs::read_dir(target.path()).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            // A fuzzer's own finds have 40 hexadecimal digits for a name, and git ignores them.
            if name.len() != 40 {
                let target = target.file_name().into_string().unwrap();
                written.insert((target, name), fs::read(file.path()).unwrap());
            }
        }
    }
    let seeds = seeds::all();
    let said: BTreeMap<_, _> = seeds
        .into_iter()
        .map(|(target, name, bytes)| ((target.to_owned(), name.to_owned()), bytes))
        .collect();
    assert!(
        written == said,
        "run `cargo run --example seeds`, and look for files that are too many"
    );
}

#[test]
fn every_target_survives_its_seeds() {
    for (target, name, bytes) in seeds::all() {
        eprintln!("{target}/{name}");
        match target {
            "arm64_chipset" => arm64_chipset::run(&bytes),
            "arm64_exits" => arm64_exits::run(&bytes),
            "arm64_kernel" => arm64_kernel::run(&bytes),
            "chipset" => chipset::run(&bytes),
            "dns_dhcp" => dns_dhcp::run(&bytes),
            "kernel" => kernel::run(&bytes),
            "net_stream" => net_stream::run(&bytes),
            "p9_messages" => p9::messages(&bytes),
            "p9_sequences" => p9::sequences(&bytes),
            "qcow2" => qcow2::run(&bytes),
            "queue_blk" => queue::blk(&bytes),
            "queue_console" => queue::console(&bytes),
            "queue_net" => queue_net::run(&bytes),
            "queue_rng" => queue::rng(&bytes),
            "queue_vsock" => queue_vsock::run(&bytes),
            "serial" => serial::run(&bytes),
            "user_frames" => user_frames::run(&bytes),
            "user_tcp" => user_tcp::run(&bytes),
            "virtio_mmio" => virtio_mmio::run(&bytes),
            other => panic!("no target {other}"),
        }
    }
}

/// Seeds are written in the form that the targets read.
#[test]
fn operations_survive_their_bytes() {
    use hyperkit_fuzz::ops::{parse, unparse};
    let head = queue::Head { features: 1, size: 2, typed: 3 };
    let ops = [
        queue::Op::Slot { queue: 1, slot: 0x1234, head: 0xffee },
        queue::Op::Settle {},
        queue::Op::Poke { place: 3, offset: 0x2211, len: 7, value: 0x8877_6655_4433_2211 },
    ];
    let (read, back): (queue::Head, Vec<queue::Op>) = parse(&unparse(&head, &ops));
    assert_eq!((read, &back[..]), (head, &ops[..]));
}

/// What a program does with a file of a share is done, and not only survived.
#[test]
fn the_messages_about_a_file_are_not_refused() {
    let seeds = seeds::all();
    let seed = seeds.iter().find(|seed| (seed.0, seed.1) == ("p9_sequences", "a-file"));
    let replies = p9::replies(&seed.unwrap().2);
    assert_eq!(replies, [111, 15, 119, 117, 27, 25, 75, 77, 117, 51, 121]);
}
