//! Programs that people run in such folders.

use super::*;

#[test]
fn a_c_project_is_built_and_kept_in_git() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let script = r#"
        set -e
        share work cache=mmap
        cd /mnt/work
        export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        tool sh -e <<'END'
mkdir /mnt/work/project; cd /mnt/work/project
for n in 1 2 3 4; do echo "int f$n(void) { return $n; }" > f$n.c; done
cat > main.c <<'C'
#include <stdio.h>
int f1(void), f2(void), f3(void), f4(void);
int main(void) { printf("sum %d\n", f1() + f2() + f3() + f4()); }
C
printf 'main: main.o f1.o f2.o f3.o f4.o\n\tcc -o $@ $^\n' > Makefile
make -s -j2
./main
make -q && echo "up to date"
git config --global core.pager cat; git config --global color.ui never
git init -q .; echo '*.o' > .gitignore; echo main >> .gitignore
git add .; git commit -q -m one
echo '/* changed */' >> f3.c
git status --short
git checkout -q f3.c; git gc -q; git fsck --strict 2>&1
git clone -q . ../clone; cd ../clone; git log --format=%s; git status --short | wc -l
END
    "#;
    let text = run(script, [share(&dir)]);
    for line in ["sum 10\nup to date\n M f3.c\n", "one\n0\n"] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    assert!(dir.path().join("clone/main.c").exists());
}

/// A project of some size: 60 files, 30,000 lines.
#[test]
#[ignore = "takes long"]
fn lua_is_built_runs_and_is_kept_in_git() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let script = r#"
        share work cache=mmap
        tool sh -e <<'END'
export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
mkdir /mnt/work/lua; cd /mnt/work/lua
tar -xzf /usr/src/lua.tar.gz --strip-components=1
printf '*.o\n*.a\nlua\nluac\n' > .gitignore
git config --global color.ui never
git init -q .; git add .; git commit -q -m one
make -s linux CC='gcc -std=gnu99 -O0 -w'
src/lua -e 'local t = {} for n = 1, 1000 do t[n] = n * n end table.sort(t, function(a, b) return a > b end) print(#t, t[1], _VERSION)'
echo 'print(("works"):rep(2, " "))' > one.lua; src/luac -o one.out one.lua; src/lua one.out
git status --short
git clone -q . ../clone; cd ../clone; git fsck --strict; git status --short | wc -l
END
    "#;
    let text = run(script, [share(&dir)]);
    let said = "1000\t1000000\tLua 5.4\nworks works\n?? one.lua\n?? one.out\n";
    assert!(text.contains(said), "no {said:?} in:\n{text}");
    assert!(text.lines().any(|line| line == "0"), "{text}");
    assert!(dir.path().join("clone/src/lvm.c").exists());
}

#[test]
fn a_database_and_shared_mappings_keep_what_they_are_given() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let (each, mebibytes) = long_or((8, 2), (3, 1));
    let script = format!(
        r#"
        set -e
        share work cache=mmap
        tool sqlite3 /mnt/work/db 'pragma journal_mode=delete; create table t(a integer primary key, b);'
        for n in 1 2 3; do
            (for m in $(seq {each}); do tool sqlite3 -cmd '.timeout 600000' /mnt/work/db "insert into t(b) values('$n $m')"; done) &
        done
        wait
        tool sqlite3 /mnt/work/db 'select count(*), count(distinct b) from t; pragma integrity_check;'
        tool fio --name=m --filename=/mnt/work/mapped --ioengine=mmap --rw=randwrite --bs=4k --size={mebibytes}M \
            --verify=crc32c --verify_fatal=1 --output=/tmp/fio || {{ cat /tmp/fio; exit 1; }}
        grep -o 'err= 0' /tmp/fio
        umount /mnt/work
    "#
    );
    let text = run(&script, [share(&dir)]);
    let all = 3 * each;
    assert!(text.contains(&format!("{all}|{all}\nok\n")) && text.contains("err= 0"), "{text}");
}

#[test]
#[ignore = "takes long"]
fn file_stressors_find_nothing_wrong() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let script = r#"
        share work
        mkdir /mnt/work/s
        for stressor in dir dirdeep dentry filename fstat link symlink rename utime chmod fallocate seek hdd readahead; do
            tool stress-ng --temp-path /mnt/work/s --$stressor 1 --$stressor-ops 200 --timeout 60 --verify \
                --dentries 50 --hdd-bytes 2m --readahead-bytes 2m --seek-size 2m --fallocate-bytes 2m -q || { echo "FAILED $stressor"; exit 1; }
            echo "done $stressor"
        done
        ls -A /mnt/work/s | wc -l
        tool dbench -D /mnt/work/s -t 3 -c /usr/share/dbench/client.txt 2 > /tmp/dbench 2>&1 || { tail -5 /tmp/dbench; exit 1; }
        grep Throughput /tmp/dbench
    "#;
    let text = run(script, [share(&dir)]);
    assert!(text.contains("\n0\nThroughput") && !text.contains("FAILED"), "{text}");
}
