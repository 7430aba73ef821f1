# What scripts in a guest are made of: `dial` connects to a port of the host, `hear` listens on one of the guest;
# types are numbers, 1 for streams and 5 for messages.
use strict; use Socket; use POSIX (); $| = 1; $SIG{PIPE} = 'IGNORE';
sub addr { pack('SSLLx4', 40, 0, $_[1], $_[0]) }
# Linux gives a connection two seconds, which is little where every instruction is emulated: ten minutes instead.
sub fresh {
    socket(my $s, 40, $_[0] || 1, 0) or die "socket: $!";
    setsockopt($s, 40, 6, pack('qq', 600, 0)) or die "setsockopt: $!"; $s
}
sub dial { my $s = fresh($_[1]); connect($s, addr(2, $_[0])) ? $s : undef }
sub hear {
    my $s = fresh($_[1]);
    bind($s, addr(0xffffffff, $_[0])) or die "bind: $!"; listen($s, 4096) or die "listen: $!"; $s
}
sub take { accept(my $s, $_[0]) or die "accept: $!"; $s }
sub put {
    my ($s, $data) = @_; my $at = 0;
    while ($at < length $data) { my $n = syswrite($s, $data, length($data) - $at, $at) or return 0; $at += $n }
    1
}
sub get {
    my ($s, $len) = @_; my $got = '';
    while (length $got < $len) { sysread($s, $got, $len - length $got, length $got) or last }
    $got
}
sub rest {
    my $s = shift; my $got = '';
    while (1) { my $n = sysread($s, $got, 65536, length $got); return "error $!" if !defined $n; return $got if !$n }
}
