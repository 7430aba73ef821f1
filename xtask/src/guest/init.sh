#!/bin/busybox sh
# The guest's first process: loads the modules carried, mounts what a system needs, and gives a root
# shell on the console the kernel was booted with.
#
# For tests, instead of the shell:
#  - a file /hk-test.sh (append a cpio archive that has one to the initrd) is run on that console;
#  - a word hk.run=BASE64 on the kernel's command line holds such a script.
# When the script ends, "hk-test: exit N" is printed and the machine is powered off.
#
# The word hk.root=DEVICE hands over to the system on that disk, an ext4 file system, instead of all
# this: it is mounted (with the options hk.rootflags=OPTIONS; read-only if there is a word ro) and
# its /sbin/init, or what a word init= names, becomes the first process.
#
# The word hk.size=COLUMNSxROWS gives the size of a serial console's terminal.

export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root TERM=${TERM:-linux}

# Input that comes before the shell is kept for it; the shell echoes it when it reads it.
stty -echo 2>/dev/null

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp

modprobe -a $(cat /etc/modules)
ip link set lo up

size=80x24 root= options= mode=rw init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
        hk.run=*) echo "${word#hk.run=}" | base64 -d >/hk-test.sh ;;
        hk.size=*) size=${word#hk.size=} ;;
        hk.root=*) root=${word#hk.root=} ;;
        hk.rootflags=*) options=,${word#hk.rootflags=} ;;
        ro) mode=ro ;;
        init=*) init=${word#init=} ;;
    esac
done

# The console that /dev/console stands for is the last of these. hvc0 may be there only now.
read -r consoles </sys/class/tty/console/active
console=${consoles##* }
exec <>"/dev/$console" >&0 2>&1
stty -echo
# A serial console has no size of its own, and programs that draw ask for one.
if [ -z "$(stty size 2>/dev/null)" ]; then
    stty cols "${size%x*}" rows "${size#*x}"
fi

# The disk may be found only now; a machine without it falls through to the shell.
if [ -n "$root" ]; then
    for _ in $(seq 100); do
        [ -b "$root" ] && break
        sleep 0.1
    done
    if mount -t ext4 -o "$mode$options" "$root" /mnt; then
        umount /tmp
        for dir in dev proc sys run; do
            mount --move "/$dir" "/mnt/$dir"
        done
        stty sane
        exec switch_root /mnt "$init"
    fi
    echo "hk.root: there is no root on $root"
fi

# The power button: /etc/acpi/PWRF/00000080.
[ -e /dev/input/event0 ] && acpid

if [ -e /hk-test.sh ]; then
    # Not in a session of its own: when a session ends, its terminal is hung up for everybody.
    sh /hk-test.sh
    echo "hk-test: exit $?"
    poweroff -f
    sleep 5
fi

cat >/etc/inittab <<END
$console::respawn:-/bin/sh
::ctrlaltdel:/sbin/reboot
END
exec /sbin/init
