//! Two guests on one folder.

use super::*;

#[test]
fn two_guests_see_each_others_files_and_locks() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    // The one takes a lock and holds it until it is told; the other finds it taken, and then free.
    let lock = r#"use Fcntl; sub lock { my ($f, $type) = @_; fcntl($f, F_SETLK, pack("ssx4qqlx4", $type, 0, 10, 10, 0)) }"#;
    let holder = format!(
        r#"
        share work
        cat > /tmp/p <<'END'
{lock}
open(my $f, "+>", "/mnt/work/locked") or die; lock($f, F_WRLCK) or die "lock: $!";
open(my $g, ">", "/mnt/work/held"); close $g;
sleep 1 until -e "/mnt/work/tried";
END
        tool perl /tmp/p || exit 1
        touch /mnt/work/free
        while [ ! -e /mnt/work/done ]; do sleep 0.2; done
        cat /mnt/work/done
        "#
    );
    let other = format!(
        r#"
        share work
        cat > /tmp/p <<'END'
{lock}
select(undef, undef, undef, 0.2) until -e "/mnt/work/held";
open(my $f, "+<", "/mnt/work/locked") or die;
print "taken: ", lock($f, F_WRLCK) ? "no" : "yes", "\n";
open(my $g, ">", "/mnt/work/tried"); close $g;
select(undef, undef, undef, 0.2) until -e "/mnt/work/free";
print "free: ", lock($f, F_WRLCK) ? "yes" : "no", "\n";
END
        tool perl /tmp/p || exit 1
        # Not there before all of it is.
        echo "from the other" > /mnt/work/done.new; mv /mnt/work/done.new /mnt/work/done
        "#
    );
    let holder = start(&holder, [share(&dir)]);
    let text = run(&other, [share(&dir)]);
    assert!(text.contains("taken: yes\nfree: yes\n"), "{text}");
    assert!(finish(&holder).contains("from the other"));
}
