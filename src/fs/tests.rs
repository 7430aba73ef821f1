use std::fs;

use tempfile::TempDir;

use super::*;

fn refused(share: Share) -> String {
    share.open().unwrap_err().to_string()
}

#[test]
fn a_folder_is_shared_under_its_tag() {
    let dir = TempDir::new().unwrap();
    for tag in ["s".to_owned(), "t".repeat(255)] {
        let share = Share::new(&tag, dir.path()).read_only().owner(Owner::squash(1000, 1000));
        let share = share.fids(10).open().unwrap();
        assert_eq!(share.tag(), tag);
        let (split, export) = share.split();
        assert_eq!(split, tag);
        assert!(matches!(export, Export::Server(_)));
    }
}

#[test]
fn what_cannot_be_shared_is_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "text").unwrap();
    let none = dir.path().join("none");
    let new = |tag: &str| Share::new(tag, dir.path());
    let relay = || Share::relay("db", RelayTo::unix("/run/none.sock"));
    for (share, words) in [
        (new(""), "1 to 255 bytes"),
        (new(&"t".repeat(256)), "not 256"),
        (new("src").fids(0), "no file at all"),
        (relay().read_only(), "its server decides"),
        (relay().owner(Owner::mapped()), "its server decides"),
        (Share::new("src", &none), none.to_str().unwrap()),
        (Share::new("src", &file), file.to_str().unwrap()),
    ] {
        let error = refused(share);
        assert!(error.contains(words), "{error}");
    }
}
