//! The life cycle: pause, resume, stop, reset, the ways a machine ends.

use std::time::{Duration, Instant};

use hyperkit::accel::kvm::Kvm;
use hyperkit::vm::{End, Error, OnReset};

use super::guest::*;

guest!(counts, "mov dx, 0x500", "2: out dx, al", "jmp 2b");
guest!(spins, "2: jmp 2b");
guest!(sleeps, "2: cli", "hlt", "jmp 2b");

#[test]
fn pause_holds_the_guest_and_resume_lets_it_go_on() {
    if !have_kvm() {
        return;
    }
    let (builder, reporter, received) = machine(counts());
    let vm = builder.build().unwrap().start().unwrap();
    for _ in 0..20 {
        received.recv_timeout(SOON).unwrap();
        vm.pause().unwrap();
        assert!(vm.is_paused());
        let count = reporter.count();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(reporter.count(), count);
        written(&received);
        vm.resume().unwrap();
        assert!(!vm.is_paused());
        received.recv_timeout(SOON).unwrap();
    }
    vm.stop();
    assert_eq!(vm.wait().unwrap(), End::Stopped);
    assert!(matches!(vm.pause(), Err(Error::Ended)));
    assert!(matches!(vm.resume(), Err(Error::Ended)));
}

#[test]
fn stop_ends_whatever_the_guest_does() {
    if !have_kvm() {
        return;
    }
    for (name, code) in [("counts", counts()), ("spins", spins()), ("sleeps", sleeps())] {
        for pause in [false, true] {
            let vm = machine(code).0.build().unwrap().start().unwrap();
            std::thread::sleep(Duration::from_millis(10));
            if pause {
                vm.pause().unwrap();
            }
            let begun = Instant::now();
            vm.stop();
            assert!(begun.elapsed() < Duration::from_secs(5), "{name}, paused: {pause}");
            assert_eq!(vm.wait().unwrap(), End::Stopped);
        }
    }
}

#[test]
fn many_threads_may_call_the_handle_at_once() {
    if !have_kvm() {
        return;
    }
    let vm = machine(counts()).0.build().unwrap().start().unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| vm.wait().unwrap());
        let callers: Vec<_> = (0..4)
            .map(|n| {
                let vm = &vm;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let _ = if n % 2 == 0 { vm.pause() } else { vm.resume() };
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        vm.stop();
        assert_eq!(waiter.join().unwrap(), End::Stopped);
    });
}

#[test]
fn waiting_with_a_time_limit_gives_up_in_time() {
    if !have_kvm() {
        return;
    }
    let vm = machine(sleeps()).0.build().unwrap().start().unwrap();
    let begun = Instant::now();
    assert!(vm.wait_timeout(Duration::from_millis(50)).is_none());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    vm.stop();
    assert_eq!(vm.wait_timeout(SOON).unwrap().unwrap(), End::Stopped);
}

// Reports the boot's number, which the device knows, and a word of memory, which it then dirties. Resets through the
// register at 0xcf9, or through the keyboard controller, as the device says.
guest!(
    resets,
    "mov dx, 0x500",
    "mov eax, [0x300000]",
    "out dx, eax",
    "mov dword ptr [0x300000], 0x12345678",
    "mov dr0, rdx",
    "mov dx, 0x504",
    "in al, dx",
    "cmp al, 1",
    "je 3f",
    "cmp al, 2",
    "je 4f",
    "mov dx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "2: hlt",
    "jmp 2b",
    "3: mov dx, 0xcf9",
    "mov al, 6",
    "out dx, al",
    "jmp 2b",
    "4: mov al, 0xfe",
    "out 0x64, al",
    "jmp 2b",
);

#[test]
fn a_reset_boots_again_in_place_with_clean_memory() {
    if !have_kvm() {
        return;
    }
    let (builder, reporter, received) = machine(resets());
    reporter.lay_out(1);
    let vm = builder.build().unwrap().start().unwrap();
    for boot in 0..30 {
        assert_eq!(received.recv_timeout(SOON).unwrap(), (0, vec![0; 4]), "at boot {boot}");
        reporter.lay_out(1 + boot % 2);
    }
    reporter.lay_out(0);
    assert_eq!(vm.wait().unwrap(), End::PowerOff);
}

#[test]
fn a_reset_can_be_the_end() {
    if !have_kvm() {
        return;
    }
    for way in [1, 2] {
        let (builder, reporter, _received) = machine(resets());
        reporter.lay_out(way);
        let vm = builder.on_reset(OnReset::End).build().unwrap().start().unwrap();
        assert_eq!(vm.wait().unwrap(), End::Reset);
    }
}

guest!(crashes, "push 0", "push 0", "lidt [rsp]", "ud2",);

#[test]
fn a_triple_fault_is_a_crash() {
    if !have_kvm() {
        return;
    }
    let vm = machine(crashes()).0.build().unwrap().start().unwrap();
    assert_eq!(vm.wait().unwrap(), End::Crashed);
}

guest!(halts, "hlt");

#[test]
fn the_last_vcpu_that_halts_ends_a_machine_without_interrupt_controller() {
    if !have_kvm() {
        return;
    }
    let kvm = Kvm::open().unwrap().without_irqchip();
    let vm = machine(halts()).0.accelerator(kvm).build().unwrap().start().unwrap();
    assert_eq!(vm.wait().unwrap(), End::Halted);
}

// Jumps to where no memory is: KVM cannot fetch an instruction from a device.
guest!(strays, "mov eax, 0xd8000000", "jmp rax");

#[test]
fn what_the_accelerator_cannot_do_is_an_error_that_says_where() {
    if !have_kvm() {
        return;
    }
    let vm = machine(strays()).0.build().unwrap().start().unwrap();
    let error = vm.wait().unwrap_err().to_string();
    assert!(error.contains("vCPU 0") && error.contains("0xd8000000"), "{error}");
}
