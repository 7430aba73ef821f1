//! What programs say before they are connected.

use std::io::Write;
use std::path::PathBuf;

use super::*;
use crate::vsock::handshake::Handshakes;

const PORT: u32 = 0xf3a5;

struct Convention {
    name: &'static str,
    vsock: fn(&TempDir) -> Vsock,
    path: fn(&TempDir) -> PathBuf,
    line: &'static [u8],
    answer: &'static [u8],
}

const CONVENTIONS: [Convention; 2] = [
    Convention {
        name: "HyperKit",
        vsock: |dir| Vsock::new().hyperkit(dir.path()),
        path: |dir| dir.path().join("connect"),
        line: b"00000003.0000f3a5\n",
        answer: b"",
    },
    Convention {
        name: "hybrid",
        vsock: |dir| Vsock::new().hybrid(dir.path().join("v")),
        path: |dir| dir.path().join("v"),
        line: b"CONNECT 62373\n",
        answer: b"OK 1073741824\n",
    },
];

#[test]
fn a_line_may_come_in_two_parts_cut_anywhere_and_what_is_behind_it_is_the_guests() {
    for convention in &CONVENTIONS {
        let dir = folder();
        let mut rig = Rig::new((convention.vsock)(&dir));
        for cut in 0..=convention.line.len() {
            let mut program = UnixStream::connect((convention.path)(&dir)).unwrap();
            let (first, second) = convention.line.split_at(cut);
            program.write_all(first).unwrap();
            if !second.is_empty() {
                rig.nothing();
            }
            program.write_all(&[second, b"data\nright behind"].concat()).unwrap();
            let call = rig.call();
            assert_eq!((call.kind, call.port), (Kind::Stream, PORT), "{} {cut}", convention.name);
            assert_eq!(read_now(&call.socket), b"data\nright behind", "{} {cut}", convention.name);

            call.answer.accept(&call.socket, 1 << 30);
            rustix::io::write(&call.socket, b"guest").unwrap();
            drop(call.socket);
            let mut heard = Vec::new();
            program.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, [convention.answer, b"guest"].concat(), "{} {cut}", convention.name);
        }
        rig.nothing();
        assert_eq!(rig.open.deadline(), None);
    }
}

#[test]
fn a_line_may_come_a_byte_at_a_time() {
    for convention in &CONVENTIONS {
        let dir = folder();
        let mut rig = Rig::new((convention.vsock)(&dir));
        let mut program = UnixStream::connect((convention.path)(&dir)).unwrap();
        for byte in convention.line {
            rig.nothing();
            program.write_all(&[*byte]).unwrap();
        }
        assert_eq!(rig.call().port, PORT);
    }
}

#[test]
fn what_the_guest_refuses_is_closed_without_a_word() {
    for convention in &CONVENTIONS {
        let dir = folder();
        let mut rig = Rig::new((convention.vsock)(&dir));
        let mut program = UnixStream::connect((convention.path)(&dir)).unwrap();
        program.write_all(convention.line).unwrap();
        let call = rig.call();
        call.answer.refuse(ErrorKind::ConnectionRefused.into());
        drop(call.socket);
        assert_eq!(program.read(&mut [0; 16]).unwrap(), 0);
    }
}

#[test]
fn a_hybrid_line_may_be_in_lower_case_end_as_others_do_and_name_any_port() {
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().hybrid(dir.path().join("v")));
    let lines: [(&[u8], u32); 4] = [
        (b"connect 1\n", 1),
        (b"CONNECT 52\r\n", 52),
        (b"CONNECT  0\n", 0),
        (b"CONNECT 4294967295\n", u32::MAX),
    ];
    for (line, port) in lines {
        let mut program = UnixStream::connect(dir.path().join("v")).unwrap();
        program.write_all(line).unwrap();
        assert_eq!(rig.call().port, port);
    }
}

#[test]
fn a_hyperkit_line_names_any_port_in_either_case() {
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().cid(0xabcd_ef01).hyperkit(dir.path()));
    for line in [b"abcdef01.ffffffff\n", b"ABCDEF01.FFFFFFFF\n"] {
        let mut program = UnixStream::connect(dir.path().join("connect")).unwrap();
        program.write_all(line).unwrap();
        assert_eq!(rig.call().port, u32::MAX);
    }
}

#[test]
fn a_line_that_says_something_else_is_the_end_of_its_connection() {
    let hyperkit: [&[u8]; 9] = [
        b"00000004.0000f3a5\n",
        b"00000002.0000f3a5\n",
        b"00000003.0000f3a5 ",
        b"00000003 0000f3a5\n",
        b"0000003.00000f3a5\n",
        b"+0000003.0000f3a5\n",
        b"00000003.+000f3a5\n",
        b"00000003.0000f3g5\n",
        b"\xff\xff\xff\xff\xff\xff\xff\xff.0000f3a5\n",
    ];
    let hybrid: [&[u8]; 12] = [
        b"\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT +5\n",
        b"CONNECT -5\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 0x10\n",
        b"CONNECT 5 6\n",
        b"CONNECT5\n",
        b"GET / HTTP/1.1\r\n",
        b"CONNECT \xff\n",
        b"CONNECT 00000000000000000000000005\n",
    ];
    for (convention, lines) in CONVENTIONS.iter().zip([&hyperkit[..], &hybrid]) {
        let dir = folder();
        let mut rig = Rig::new((convention.vsock)(&dir));
        for line in lines {
            let mut program = UnixStream::connect((convention.path)(&dir)).unwrap();
            program.write_all(line).unwrap();
            rig.nothing();
            assert!(is_closed(&program), "{} {:?}", convention.name, line.escape_ascii());
        }
        assert_eq!(rig.open.deadline(), None, "{}: one is still under way", convention.name);
    }
}

#[test]
fn a_line_that_has_no_end_is_not_waited_for() {
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().hybrid(dir.path().join("v")));
    let mut program = UnixStream::connect(dir.path().join("v")).unwrap();
    program.write_all(&[b' '; 31]).unwrap();
    rig.nothing();
    assert!(is_open(&program));
    program.write_all(b" ").unwrap();
    rig.nothing();
    assert!(is_closed(&program));
}

#[test]
fn a_program_that_leaves_in_the_middle_of_its_line_is_forgotten() {
    for convention in &CONVENTIONS {
        let dir = folder();
        let mut rig = Rig::new((convention.vsock)(&dir));
        for cut in 0..convention.line.len() {
            let mut program = UnixStream::connect((convention.path)(&dir)).unwrap();
            program.write_all(&convention.line[..cut]).unwrap();
            rig.nothing();
            assert!(rig.open.deadline().is_some());
            drop(program);
            rig.nothing();
            assert_eq!(rig.open.deadline(), None, "{} {cut}", convention.name);
        }
    }
}

#[test]
fn a_program_that_does_not_say_in_time_where_to_is_turned_away() {
    for convention in &CONVENTIONS {
        let dir = folder();
        let mut rig = Rig::new((convention.vsock)(&dir));
        rig.open.patience = Duration::from_millis(20);
        let mut silent = UnixStream::connect((convention.path)(&dir)).unwrap();
        rig.settle();
        silent.write_all(&convention.line[..5]).unwrap();
        while rig.open.deadline().is_some() {
            rig.turn(LONG);
        }
        assert!(is_closed(&silent));
        assert!(rig.wants.is_empty());
    }
}

#[test]
fn programs_have_ten_seconds_to_say_where_to_and_the_guest_has_as_many_to_answer() {
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().hybrid(dir.path().join("v")));
    let before = Instant::now();
    let mut program = UnixStream::connect(dir.path().join("v")).unwrap();
    rig.settle();
    let after = Instant::now();
    let until = rig.open.deadline().unwrap();
    let ten = Duration::from_secs(10);
    assert!(before + ten <= until && until <= after + ten);

    program.write_all(b"CONNECT 1\n").unwrap();
    let call = rig.call();
    assert!(after + ten <= call.until && call.until <= Instant::now() + ten);
}

#[test]
fn those_that_come_when_too_many_are_silent_wait_until_one_has_left() {
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().hybrid(dir.path().join("v")));
    let connect = || UnixStream::connect(dir.path().join("v")).unwrap();
    let mut silent: Vec<_> = (0..Handshakes::MOST).map(|_| connect()).collect();
    rig.settle();
    let mut late = connect();
    late.write_all(b"CONNECT 7\n").unwrap();
    rig.nothing();
    assert!(is_open(&late));

    drop(silent.pop());
    assert_eq!(rig.call().port, 7);
    // The place is free again.
    silent.push(connect());
    rig.nothing();
    silent.last_mut().unwrap().write_all(b"CONNECT 8\n").unwrap();
    assert_eq!(rig.call().port, 8);
}
