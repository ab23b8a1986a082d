packages=$2
# Nothing is started: there is no service manager, and what scripts start would end with them.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    policy=ours
fi
group=0
# What is essential counts on each other before any of it is configured. The tree is thrown away if anything goes
# wrong: nothing in it needs to be on a disk.
force=--force-depends
while [ "$group" -lt "$1" ]; do
    if [ -s "$packages/group-$group" ]; then
        xargs dpkg --force-unsafe-io --force-confdef --force-confnew $force --install < "$packages/group-$group"
    fi
    force=
    group=$((group + 1))
done
if [ "${policy-}" = ours ]; then rm /usr/sbin/policy-rc.d; fi
cd /
# What each run makes anew, or a host would give.
rm -rf etc/hostname etc/resolv.conf etc/.pwd.lock etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- \
    etc/subgid- var/cache/ldconfig/aux-cache var/cache/debconf/*-old var/lib/dpkg/*-old var/lib/dpkg/lock \
    var/lib/dpkg/lock-frontend var/lib/dpkg/triggers/Lock var/lib/systemd/random-seed \
    var/lib/systemd/catalog/database var/lib/dbus/machine-id var/lib/apt/lists/auxfiles var/log/dpkg.log var/log/alternatives.log \
    var/log/bootstrap.log var/log/fontconfig.log var/log/apt/*
for dir in var/cache/apt var/lib/apt/lists; do
    if [ -d $dir ]; then find $dir -type f -delete; fi
done
find var/log -type f -exec truncate -s 0 {} +
find tmp var/tmp -mindepth 1 -delete
# Directories that programs count on stay; a file of a process says something of one that is gone.
find run -mindepth 1 ! -type d -delete
if [ -e etc/machine-id ]; then : > etc/machine-id; fi
