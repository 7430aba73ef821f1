#!/bin/sh
# Makes the image of a Debian root file system; root.rs runs it, as root.
#
# usage: root.sh IMAGE OWNER MODULES SUITE PACKAGES SOURCES CONFIG
#   IMAGE     the file to make; the tree it is made of lies beside it meanwhile
#   OWNER     whose file it shall be, as chown takes it
#   MODULES   a kernel's folder lib/modules/RELEASE
#   SUITE     Debian's name for the release
#   PACKAGES  what to install, with commas
#   SOURCES   lines for apt's sources.list
#   CONFIG    lines for apt's configuration

set -eu
export LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
image=$1 owner=$2 modules=$3 suite=$4 packages=$5 sources=$6 config=$7
tree=$image.tree
clean() { rm -rf --one-file-system "$tree" "$image.conf" "$image.apt"; }
trap clean EXIT
clean

printf '%s\n' "$config" >"$image.conf"
# In a mount namespace of its own: killed, it leaves no mounts behind.
printf '%s\n' "$sources" | unshare --mount mmdebstrap --mode=root --format=directory --variant=minbase \
    --aptopt="$image.conf" --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    "$suite" "$tree"

# The source of a program of some size, for guests to build.
mkdir -p "$image.apt/lists/partial" "$image.apt/cache/archives/partial"
printf '%s\n' "$sources" | sed -n 's/^deb /deb-src /p' >"$image.apt/sources.list"
(
    cd "$tree/usr/src"
    apt_get() {
        apt-get -q -c "$image.conf" -o Dir::Etc::sourcelist="$image.apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::State::lists="$image.apt/lists" -o Dir::Cache="$image.apt/cache" -o APT::Sandbox::User=root "$@"
    }
    apt_get update
    apt_get source --download-only lua5.4
    rm ./*.dsc ./*.debian.tar.*
    mv lua5.4_*.orig.tar.gz lua.tar.gz
)

mkdir -p "$tree/lib/modules"
cp -r "$modules" "$tree/lib/modules/"
chroot "$tree" depmod "${modules##*/}"

echo hk >"$tree/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 hk\n::1 localhost\n' >"$tree/etc/hosts"
echo 'LABEL=hk-root / ext4 errors=remount-ro 0 1' >"$tree/etc/fstab"
chroot "$tree" passwd -q -d root
# A program that reads the console should see what is typed and printed, and little else.
echo 'set enable-bracketed-paste off' >>"$tree/etc/inputrc"
touch "$tree/root/.hushlogin"

# Housekeeping for machines that live for weeks, slow where every instruction is emulated.
chroot "$tree" systemctl -q disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer
# So that no boot takes itself for the first one, or for the first after an upgrade.
chroot "$tree" systemd-machine-id-setup
touch "$tree/etc/.updated" "$tree/var/.updated"

# Nothing is left to be initialised when it is mounted: that would be I/O at any time.
rm -f "$image"
mke2fs -q -t ext4 -L hk-root -m 1 -E lazy_itable_init=0,lazy_journal_init=0 -d "$tree" "$image" 1536M
chown "$owner" "$image"
