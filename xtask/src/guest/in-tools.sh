#!/bin/busybox sh
# usage: in-tools DEVICE COMMAND [ARGUMENT…]
#
# Runs a command of the Debian on a disk, for what busybox does not have: fio, mkfs.ext4, fsck.ext4 …
# The disk is mounted read-only at /tools and stays so. The command has it as its root and begins in
# /tmp. It sees the caller's /dev, /proc, /sys, /run, /tmp, /mnt and /etc/resolv.conf, in mounts of
# its own: when the caller unmounts what is on /mnt, that is unmounted.

device=$1
shift
if ! grep -q "^$device /tools " /proc/mounts; then
    mkdir -p /tools
    mount -t ext4 -o ro "$device" /tools || exit 125
fi
# The path keeps busybox from running an env of its own.
exec unshare -m sh -c '
    for dir in dev proc sys run tmp mnt; do
        mount -o rbind "/$dir" "/tools/$dir" || exit 125
    done
    [ -e /etc/resolv.conf ] && mount -o bind /etc/resolv.conf /tools/etc/resolv.conf
    exec chroot /tools /usr/bin/env -C /tmp "$@"' in-tools "$@"
