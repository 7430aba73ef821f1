//! Images of all kinds.

use super::*;

/// Exercises an image, closes it, has it checked, and opens it again.
fn try_out(bench: &Bench, name: &str, backing: Option<Image>, model: &mut [u8], seed: u64) {
    let mut random = Random(seed);
    for _ in 0..2 {
        let disk = open_any(&bench.path(name), backing.as_ref(), false, Flush::None).unwrap();
        assert_eq!(disk.size(), model.len() as u64);
        exercise(&disk, model, &mut random, 150);
        drop(disk);
        bench.check(name);
        bench.compare(name, model);
    }
    let disk = open_any(&bench.path(name), backing.as_ref(), true, Flush::None).unwrap();
    assert!(read(&disk, 0, model.len() as u64) == model);
    let refused = disk.write(0, BufferList::from(&mut [0; 512][..]).all());
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    assert!(disk.discard(0, 512).is_err() && disk.write_zeroes(0, 512, true).is_err());
    assert!(disk.resize(1 << 30).is_err());
    disk.flush().unwrap();
}

#[test]
fn all_cluster_sizes_and_versions() {
    let Some(bench) = Bench::new() else { return };
    for (number, (options, size)) in [
        ("cluster_size=512", 700 << 10),
        ("cluster_size=512,compat=0.10", 300 << 10),
        ("cluster_size=4k,compat=0.10", 2 << 20),
        ("cluster_size=64k", 5 << 20),
        ("cluster_size=64k,lazy_refcounts=on", 3 << 20),
        ("cluster_size=2M", 9 << 20),
        ("cluster_size=512,refcount_bits=1", 300 << 10),
        ("cluster_size=4k,refcount_bits=4", 2 << 20),
        ("cluster_size=1k,refcount_bits=64", 600 << 10),
        ("preallocation=metadata", 3 << 20),
        ("preallocation=falloc,cluster_size=16k", 2 << 20),
        // The last cluster is not a whole one.
        ("cluster_size=64k", (2 << 20) + 512 * 7),
    ]
    .into_iter()
    .enumerate()
    {
        eprintln!("{options} {size}");
        bench.create("disk", options, size);
        let mut model = vec![0; size as usize];
        try_out(&bench, "disk", None, &mut model, number as u64 + 1);
    }
}

#[test]
fn compressed_clusters() {
    let Some(bench) = Bench::new() else { return };
    let mut random = Random(3);
    for options in ["cluster_size=64k", "cluster_size=4k", "compat=0.10"] {
        let mut model: Vec<u8> =
            random.bytes(40 << 10).iter().flat_map(|&byte| [byte; 64]).collect();
        bench.convert("disk", &["-c", "-o", options], &model);
        let disk = open_any(&bench.path("disk"), None, true, Flush::None).unwrap();
        assert!(read(&disk, 0, model.len() as u64) == model);
        assert!(read(&disk, 0x10e00, 0x2400) == model[0x10e00..][..0x2400]);
        drop(disk);
        try_out(&bench, "disk", None, &mut model, 7);
    }
}

#[test]
fn chains_of_images() {
    let Some(bench) = Bench::new() else { return };
    let mut random = Random(5);
    // What is under an image may end before it does, and within a sector's neighbour.
    let base = random.bytes((1 << 20) + 512 * 3);
    let size = 2 << 20;
    std::fs::write(bench.path("base"), &base).unwrap();
    for options in ["cluster_size=64k", "cluster_size=4k,compat=0.10"] {
        let over = |name: &str, under: &str, format: &str| {
            let options = format!("{options},backing_file={under},backing_fmt={format}");
            bench.create(name, &options, size)
        };
        let mut model = base.clone();
        model.resize(size as usize, 0);
        over("middle", "base", "raw");
        try_out(&bench, "middle", Some(raw(bench.path("base"))), &mut model, 11);
        over("top", "middle", "qcow2");
        let middle = || Image::Qcow2 {
            path: bench.path("middle"),
            backing: Some(Box::new(raw(bench.path("base")))),
        };
        let before = model.clone();
        try_out(&bench, "top", Some(middle()), &mut model, 13);
        // Nothing was written to what is under it.
        bench.compare("middle", &before);
        assert!(std::fs::read(bench.path("base")).unwrap() == base);
    }
}

#[test]
fn snapshots_stay_as_they_are() {
    let Some(bench) = Bench::new() else { return };
    let mut random = Random(17);
    for options in ["cluster_size=64k", "cluster_size=512,refcount_bits=8", "compat=0.10"] {
        let then = random.bytes(1 << 20);
        bench.convert("disk", &["-o", options], &then);
        bench.must(&["snapshot", "-c", "then", "disk"]);
        let mut model = then.clone();
        try_out(&bench, "disk", None, &mut model, 19);
        bench.must(&["snapshot", "-a", "then", "disk"]);
        bench.compare("disk", &then);
        bench.check("disk");
    }
}

#[test]
fn growing_while_in_use() {
    let Some(bench) = Bench::new() else { return };
    let mut random = Random(23);
    for options in ["cluster_size=512", "cluster_size=64k"] {
        let path = bench.create("disk", options, 256 << 10);
        let mut model = vec![0; 256 << 10];
        let disk = open(&path);
        // With clusters of 512 bytes the table of level 1, and that of refcounts, have to move.
        for size in [300 << 10, 4 << 20, 12 << 20] {
            exercise(&disk, &mut model, &mut random, 40);
            disk.resize(size).unwrap();
            assert_eq!(disk.size(), size);
            model.resize(size as usize, 0);
            let bytes = random.bytes(700 << 10);
            let offset = size as usize - bytes.len().min(size as usize);
            let bytes = &bytes[..(size as usize - offset).min(bytes.len())];
            write(&disk, offset as u64, bytes);
            model[offset..].copy_from_slice(bytes);
        }
        exercise(&disk, &mut model, &mut random, 40);
        let refused = disk.resize(1 << 20).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
        drop(disk);
        bench.check("disk");
        bench.compare("disk", &model);
    }
}

#[test]
fn growing_shows_nothing_of_what_is_under_it() {
    let Some(bench) = Bench::new() else { return };
    std::fs::write(bench.path("base"), [0x77; 256 << 10]).unwrap();
    let path = bench.create("disk", "backing_file=base,backing_fmt=raw", 100 << 10);
    let disk = open_any(&path, Some(&raw(bench.path("base"))), false, Flush::None).unwrap();
    disk.resize(512 << 10).unwrap();
    let mut model = vec![0x77; 100 << 10];
    model.resize(512 << 10, 0);
    assert!(read(&disk, 0, 512 << 10) == model);
    drop(disk);
    bench.check("disk");
    bench.compare("disk", &model);
}
