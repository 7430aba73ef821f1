use std::sync::{Arc, Barrier};

use super::*;
use crate::random::Random;

const RAM: (u64, u64) = (0x4000_0000, 0x1000_0000);
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;

fn psci(vcpus: u32) -> Psci {
    Psci::new(vcpus, &[RAM])
}

fn returned(psci: &Psci, x: [u64; 4]) -> i64 {
    match psci.call(0, x) {
        Action::Return(value) => value as i64,
        other => panic!("{x:x?}: {other:?}"),
    }
}

/// Every id of PSCI, of the calling convention and of what Linux looks for besides, in both widths; and what
/// PSCI_FEATURES says of it, which is the same.
#[test]
fn what_is_not_there_is_not_supported_and_what_is_says_so() {
    let there = [
        0x8000_0000, // SMCCC_VERSION
        0x8000_0001, // SMCCC_ARCH_FEATURES
        0x8400_0000, // PSCI_VERSION
        0x8400_0001, // CPU_SUSPEND
        0xc400_0001,
        0x8400_0002, // CPU_OFF
        0x8400_0003, // CPU_ON
        0xc400_0003,
        0x8400_0004, // AFFINITY_INFO
        0xc400_0004,
        0x8400_0006, // MIGRATE_INFO_TYPE
        0x8400_0008, // SYSTEM_OFF
        0x8400_0009, // SYSTEM_RESET
        0x8400_000a, // PSCI_FEATURES
        0x8400_0012, // SYSTEM_RESET2
        0xc400_0012,
    ];
    // Low halves: PSCI, TRNG, SDEI, processor workarounds, and the identity of a hypervisor.
    let low = (0..0x100_u64).chain([0x3fff, 0x7fff, 0x8000, 0xff01, 0xffff]);
    let high = [0x8000, 0xc000, 0x8400, 0xc400, 0x8600, 0xc600, 0x0400, 0x4400, 0, 0xffff];
    let psci = psci(2);
    let mut seen = 0;
    for id in low.flat_map(|low| high.map(|high| high << 16 | low)) {
        let present = there.contains(&id);
        seen += u32::from(present);
        // A function to ask about, and a processor that cannot be meant.
        let action = psci.call(0, [id, 0x8000_0000, 0, 0]);
        assert_eq!(action != value(NOT_SUPPORTED), present, "{id:#x}");
        // Only SMCCC_VERSION tells of SMCCC_ARCH_FEATURES.
        let feature = if present && id != 0x8000_0001 { SUCCESS } else { NOT_SUPPORTED };
        assert_eq!(returned(&psci, [0x8400_000a, id, 0, 0]), feature, "{id:#x}");
        let arch = if [0x8000_0000, 0x8000_0001].contains(&id) { SUCCESS } else { NOT_SUPPORTED };
        assert_eq!(returned(&psci, [0x8000_0001, id, 0, 0]), arch, "{id:#x}");
    }
    assert_eq!(seen, there.len() as u32);
}

#[test]
fn simple_calls_do_what_they_say() {
    let psci = psci(1);
    for (x, action) in [
        ([0x8400_0000, 0], Action::Return(0x1_0001)),
        ([0x8000_0000, 0], Action::Return(0x1_0001)),
        ([0x8400_0001, 0x1_0000], Action::Standby),
        ([0xc400_0001, u64::MAX], Action::Standby),
        ([0x8400_0006, 0], Action::Return(2)),
        ([0x8400_0008, 0], Action::PowerOff),
        ([0x8400_0009, 0], Action::Reset),
        ([0x8400_0012, 0], Action::Reset),
        ([0xc400_0012, 0], Action::Reset),
        ([0x8400_0012, 1], Action::Return(-2_i64 as u64)),
        ([0xc400_0012, 0x8000_0000], Action::Return(-2_i64 as u64)),
    ] {
        assert_eq!(psci.call(0, [x[0], x[1], 0, 0]), action, "{x:x?}");
    }
}

/// The function's id is in W0, and a 32-bit call's parameters are in W1 to W3.
#[test]
fn upper_halves_of_32_bit_calls_mean_nothing() {
    let junk = 0xdead_beef_0000_0000_u64;
    assert_eq!(returned(&psci(1), [junk | 0x8400_0000, 0, 0, 0]), 0x1_0001);
    let on = |function, junk| {
        let psci = psci(2);
        let call = [function, junk | 1, junk | RAM.0, junk | 7];
        (psci.call(0, call), psci.take_start(1))
    };
    let started = (Action::On(1), Some(CpuState::entry(RAM.0, 7)));
    assert_eq!(on(0x8400_0003, 0), started);
    assert_eq!(on(0x8400_0003, junk), started);
    assert_eq!(on(CPU_ON, 0), started);
    assert_eq!(on(CPU_ON, junk), (value(INVALID_PARAMETERS), None));
}

#[test]
fn errors_are_negative_in_either_width() {
    let Action::Return(value) = psci(1).call(0, [0x8400_0005, 0, 0, 0]) else { panic!() };
    assert_eq!((value as i64, value as i32), (-1, -1));
}

#[test]
fn a_processor_is_switched_on_once_and_off_by_itself() {
    let psci = psci(18);
    // The eighteenth is the second of the second cluster.
    let on = [CPU_ON, 0x101, RAM.0 + 0x80, 0x1234_5678_9abc_def0];
    let info = |psci: &Psci| returned(psci, [AFFINITY_INFO, 0x101, 0, 0]);
    assert_eq!((info(&psci), psci.take_start(17)), (AFFINITY_OFF, None));
    assert_eq!(psci.call(0, on), Action::On(17));
    assert_eq!((info(&psci), returned(&psci, on)), (AFFINITY_ON_PENDING, ON_PENDING));
    assert_eq!(psci.take_start(17), Some(CpuState::entry(on[2], on[3])));
    assert_eq!((info(&psci), returned(&psci, on)), (AFFINITY_ON, ALREADY_ON));
    assert_eq!(psci.take_start(17), None, "only once");
    assert_eq!(psci.call(17, [0x8400_0002, 0, 0, 0]), Action::Off);
    assert_eq!(info(&psci), AFFINITY_OFF);
    assert_eq!(psci.call(0, on), Action::On(17));
}

#[test]
fn a_processor_that_does_not_exist_or_code_that_cannot_is_refused() {
    let psci = psci(2);
    for target in [2, 0x10, 0x100, 1 << 31 | 1, 1 << 24 | 1, 1 << 32 | 1, 1 << 40 | 1, u64::MAX] {
        assert_eq!(returned(&psci, [CPU_ON, target, RAM.0, 0]), INVALID_PARAMETERS, "{target:#x}");
        let info = returned(&psci, [AFFINITY_INFO, target, 0, 0]);
        assert_eq!(info, INVALID_PARAMETERS, "{target:#x}");
    }
    for entry in [0, RAM.0 - 4, RAM.0 + 1, RAM.0 + 2, RAM.0 + RAM.1, u64::MAX, u64::MAX - 3] {
        assert_eq!(returned(&psci, [CPU_ON, 1, entry, 0]), INVALID_ADDRESS, "{entry:#x}");
    }
    assert_eq!(psci.call(0, [CPU_ON, 1, RAM.0 + RAM.1 - 4, 0]), Action::On(1));
}

#[test]
fn odd_memory_is_survived() {
    let psci = Psci::new(2, &[(0, 0), (u64::MAX, 0), (u64::MAX - 7, u64::MAX)]);
    assert_eq!(returned(&psci, [CPU_ON, 1, 0, 0]), INVALID_ADDRESS);
    assert_eq!(psci.call(0, [CPU_ON, 1, u64::MAX - 3, 0]), Action::On(1));
    let none = Psci::new(0, &[]);
    assert_eq!(returned(&none, [CPU_ON, 0, 0, 0]), INVALID_PARAMETERS);
    assert_eq!(none.call(u32::MAX, [0x8400_0002, 0, 0, 0]), Action::Off);
    none.set_power(7, true);
    assert_eq!(none.take_start(7), None);
}

/// Of a cluster, or of clusters of clusters: on if any of it is on, off if all of it is.
#[test]
fn affinities_above_processors_are_looked_at_as_a_whole() {
    let psci = psci(0x1020);
    let info = |target, level| returned(&psci, [AFFINITY_INFO, target, level, 0]);
    assert_eq!(info(0, 1), AFFINITY_ON);
    assert_eq!(info(0x100, 1), AFFINITY_OFF);
    assert_eq!(info(0x1ff, 1), AFFINITY_OFF, "what is below the level means nothing");
    assert_eq!(info(0x1_0000, 2), AFFINITY_OFF);
    assert_eq!(info(0xff_ffff, 3), AFFINITY_ON);
    for (target, level) in [(0x10_0200, 1), (0x2_0000, 2), (1 << 32, 3), (1 << 24, 3), (0, 4)] {
        assert_eq!(info(target, level), INVALID_PARAMETERS, "{target:#x} at level {level}");
    }
    assert_eq!(psci.call(0, [CPU_ON, 0x10f, RAM.0, 0]), Action::On(31));
    assert_eq!(info(0x100, 1), AFFINITY_ON_PENDING);
    assert_eq!(psci.call(0, [CPU_ON, 0x100, RAM.0, 0]), Action::On(16));
    assert!(psci.take_start(16).is_some());
    assert_eq!(info(0x100, 1), AFFINITY_ON);
    // The level is 32 bits wide in either call.
    assert_eq!(info(0x100, 1 << 32), AFFINITY_ON);
}

#[test]
fn a_reset_puts_processors_back_to_how_they_began() {
    let psci = psci(3);
    assert_eq!(psci.call(0, [CPU_ON, 1, RAM.0, 0]), Action::On(1));
    assert_eq!(psci.call(0, [CPU_ON, 2, RAM.0, 0]), Action::On(2));
    assert!(psci.take_start(2).is_some());
    assert_eq!(psci.call(0, [0x8400_0002, 0, 0, 0]), Action::Off);
    for vcpu in 0..3 {
        psci.set_power(vcpu, vcpu == 0);
    }
    assert_eq!(psci.take_start(1), None, "what was pending is forgotten");
    let info = [0, 1, 2].map(|target| returned(&psci, [AFFINITY_INFO, target, 0, 0]));
    assert_eq!(info, [AFFINITY_ON, AFFINITY_OFF, AFFINITY_OFF]);
}

/// However many call at once, one starts the processor.
#[test]
fn of_many_starts_at_once_one_succeeds() {
    for _ in 0..50 {
        let psci = Arc::new(psci(5));
        let barrier = Arc::new(Barrier::new(4));
        let threads = [0, 1, 2, 3].map(|n| {
            let (psci, barrier) = (psci.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                psci.call(n, [CPU_ON, 4, RAM.0, n.into()]) == Action::On(4)
            })
        });
        let started = threads.map(|thread| thread.join().unwrap());
        let winner = started.iter().position(|&started| started).unwrap() as u64;
        assert_eq!(started.iter().filter(|&&started| started).count(), 1);
        assert_eq!(psci.take_start(4), Some(CpuState::entry(RAM.0, winner)));
    }
}

/// A machine of forty processors in three clusters, as the specification tells it: lists of those that are on and of
/// those that are about to be.
#[derive(Default)]
struct Model {
    on: Vec<u64>,
    pending: Vec<(u64, [u64; 2])>,
}

impl Model {
    const VCPUS: u64 = 40;

    fn target(affinity: u64) -> Option<u64> {
        (0..Self::VCPUS).find(|n| n / 16 * 256 + n % 16 == affinity)
    }

    /// What X0 is afterwards; `None` if nothing comes back.
    fn call(&mut self, vcpu: u64, x: [u64; 4]) -> Option<i64> {
        Some(match x[0] {
            0xc400_0003 => match Self::target(x[1]) {
                None => -2,
                Some(n) if self.on.contains(&n) => -4,
                Some(n) if self.pending.iter().any(|p| p.0 == n) => -5,
                Some(_) if !x[2].is_multiple_of(4) || x[2] < RAM.0 || x[2] >= RAM.0 + RAM.1 => -9,
                Some(n) => {
                    self.pending.push((n, [x[2], x[3]]));
                    0
                }
            },
            0xc400_0004 => match Self::target(x[1]) {
                Some(n) if x[2] == 0 && self.on.contains(&n) => 0,
                Some(n) if x[2] == 0 && self.pending.iter().any(|p| p.0 == n) => 2,
                Some(_) if x[2] == 0 => 1,
                _ => -2,
            },
            0x8400_0002 => {
                self.on.retain(|&n| n != vcpu);
                return None;
            }
            _ => -1,
        })
    }

    fn start(&mut self, vcpu: u64) -> Option<[u64; 2]> {
        let at = self.pending.iter().position(|p| p.0 == vcpu)?;
        self.on.push(vcpu);
        Some(self.pending.remove(at).1)
    }
}

#[test]
fn random_calls_do_what_they_do_to_a_list_of_processors() {
    let mut random = Random(3);
    let mut starts = 0;
    for _ in 0..200 {
        let psci = psci(Model::VCPUS as u32);
        let mut model = Model { on: vec![0], ..Model::default() };
        for _ in 0..300 {
            let affinity = |random: &mut Random| random.below(4) << 8 | random.below(18);
            let vcpu = model.on.get(random.below(40) as usize).copied();
            let Some(caller) = vcpu.or(model.on.first().copied()) else { break };
            let x = match random.below(8) {
                0..3 => {
                    let entry = RAM.0 - 8 + random.below(4) * 4 + random.below(10) / 9;
                    [CPU_ON, affinity(&mut random), entry, random.next()]
                }
                3..6 => [AFFINITY_INFO, affinity(&mut random), 0, 0],
                // The last to go would end the sequence.
                6 if model.on.len() > 1 => [0x8400_0002, 0, 0, 0],
                _ => {
                    let vcpu = random.below(Model::VCPUS);
                    let start = model.start(vcpu).map(|[pc, x0]| CpuState::entry(pc, x0));
                    assert_eq!(psci.take_start(vcpu as u32), start);
                    starts += u32::from(start.is_some());
                    continue;
                }
            };
            let value = match psci.call(caller as u32, x) {
                Action::Return(value) => Some(value as i64),
                Action::On(n) => {
                    assert_eq!(Some(u64::from(n)), Model::target(x[1]));
                    Some(0)
                }
                Action::Off => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(value, model.call(caller, x), "{x:x?} by {caller}");
        }
    }
    assert!(starts > 1000, "{starts}");
}

/// Whatever is in the registers, from any vCPU: an answer, and only the vCPUs that there are.
#[test]
fn any_registers_are_answered() {
    let mut random = Random(4);
    let psci = psci(4);
    for _ in 0..300_000 {
        let id = match random.below(4) {
            0 => random.next(),
            1 => random.next() & 0xffff_ffff,
            _ => {
                [0x8400_0000, 0xc400_0000, 0x8000_0000][random.below(3) as usize] | random.below(32)
            }
        };
        let x = [id, random.next() >> random.below(64), random.next(), random.next()];
        let caller = random.below(6) as u32;
        match psci.call(caller, x) {
            Action::On(n) => assert!(n < 4 && psci.take_start(n).is_some()),
            Action::Off => assert_eq!(x[0] as u32, 0x8400_0002),
            Action::Return(value) => assert!((-9..=0x1_0001).contains(&(value as i64))),
            Action::Standby | Action::PowerOff | Action::Reset => {}
        }
    }
}
