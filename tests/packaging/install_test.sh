#!/bin/bash
# The Debian package on a machine of its own: installed, run under systemd, upgraded, removed, purged.
#
#   install_test.sh PACKAGE.deb [NEXT.deb]
#
# As root on a fresh Debian with systemd as process 1, cgroup v2, busybox-static, and the package's dependencies, or a
# network to fetch them from. It changes the machine; use one that is thrown away. install_pods.py lies beside it.
set -euo pipefail
trap 'echo "stopped at line $LINENO"' ERR
deb=$(readlink -f "$1")
next=${2:+$(readlink -f "$2")}
here=$(dirname "$(readlink -f "$0")")
work=$(mktemp -d)
failures=0

say() { printf '\n== %s\n' "$*"; }
check() { # what, then a command that must succeed
    local what=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        echo "ok    $what"
    else
        echo "FAIL  $what: $* "
        sed 's/^/      /' "$work/out"
        failures=$((failures + 1))
    fi
}
same() { [ "$1" = "$2" ] || { echo "is $1, should be $2"; return 1; }; }
gone() { [ ! -e "$1" ] || { ls -la "$1"; return 1; }; }
pods() { /usr/lib/crisp/bin/python3 "$here/install_pods.py" "$@"; }
install_deb() { dpkg -i "$1" || { apt-get update && apt-get install -y -f; }; }
alive() { kill -0 "$1"; }
ready() { systemctl is-active crisp.service && crisp ps; }

machine() { # everything of the kernel's that crisp could leave something in
    echo "mounts"; awk '{print $5, $9, $10}' /proc/self/mountinfo | grep -v '^/run/credentials' | sort
    echo "links"; ip -o link | awk -F': ' '{print $2}' | sort
    echo "nftables"; nft list ruleset
    echo "cgroups"
    find /sys/fs/cgroup -type d | grep -Ev '\.(service|mount|socket|swap)(/|$)|/(user|session)[^/]*\.(slice|scope)' | sort
    echo "processes"; ps -eo comm= | sed -nE '/crisp|crun|runc|busybox|^sleep/p' | sort
    echo "profiles"; sort /sys/kernel/security/apparmor/profiles 2>/dev/null || true
    echo "files"; find /run /var/lib /var/log /etc /usr -xdev -iname '*crisp*' 2>/dev/null | sort
}
settled() { # the machine is as it was, but for what $1 leaves out; systemd takes its time to drop empty slices
    for _ in 1 2 3 4 5; do
        machine | grep -Ev "${1:-^$}" >"$work/now"
        grep -Ev "${1:-^$}" "$work/before" | diff - "$work/now" >"$work/difference" && return 0
        sleep 2
    done
    cat "$work/difference"
    return 1
}

mkdir -p "$work/root/"{bin,proc,sys,dev,tmp,etc}
cp /bin/busybox "$work/root/bin/"
for name in sh sleep echo cat true; do ln -s busybox "$work/root/bin/$name"; done
chmod 755 "$work" "$work/root"
machine >"$work/before"

say "install"
install_deb "$deb"
check "the daemon runs" ready
check "it is switched on" systemctl is-enabled crisp.service
check "the host is able" crisp check
check "the environment is of its own" /usr/bin/crisp --version
check "the cgroup driver is systemd" same "$(pods driver)" SYSTEMD
crisp image add-rootfs localhost/busybox:test "$work/root"

say "pods as the kubelet makes them"
parent=kubepods-besteffort-pod0001.slice
read -r pod container pid < <(pods run $parent 'trap "exit 7" TERM; n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done')
log=/var/log/pods/$(ls /var/log/pods)/main.log
lines() { wc -l <"$log"; }
grows() { local n; n=$(lines); for _ in $(seq 100); do [ "$(lines)" -gt "$n" ] && return 0; sleep 0.1; done; return 1; }
check "in the slice that was asked for" grep -q \
    "^0::/kubepods.slice/kubepods-besteffort.slice/$parent/crisp-$container.scope" "/proc/$pid/cgroup"
check "which systemd knows" systemctl is-active "crisp-$container.scope" kubepods-besteffort.slice
check "exec" same "$(pods exec "$container" 'echo hello')" hello
check "the log grows" grows
scope=/sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice/$parent/crisp-$container.scope
limits() { echo "$(cat "$scope/memory.max") $(cat "$scope/cpu.max") $(cat "$scope/cpuset.cpus")"; }
check "limits" same "$(limits)" "67108864 50000 100000 0-1"
systemctl daemon-reload
check "limits after systemctl daemon-reload" same "$(limits)" "67108864 50000 100000 0-1"
pods update "$container" 33554432 250
check "new limits" same "$(limits)" "33554432 25000 100000 0"
systemctl daemon-reload
check "new limits after systemctl daemon-reload" same "$(limits)" "33554432 25000 100000 0"
own=$(pods run "" 'sleep 100000') # a pod whose client names no parent
read -r _ own_container own_pid <<<"$own"

say "restart"
daemon=$(systemctl show -P MainPID crisp.service)
check "systemctl restart" systemctl restart crisp.service
check "another daemon" test "$(systemctl show -P MainPID crisp.service)" != "$daemon"
check "the containers live" alive "$pid"
check "and the other one" alive "$own_pid"
check "they are the daemon's again" same "$(pods state "$container")" CONTAINER_RUNNING
check "exec after the restart" same "$(pods exec "$container" 'echo again')" again
check "the log still grows" grows
systemctl kill --kill-whom=main -s KILL crisp.service
for _ in $(seq 300); do ready >/dev/null 2>&1 && break; sleep 0.2; done
check "systemd starts it after a crash" ready
check "the containers live on" alive "$pid"

if [ -n "$next" ]; then
    say "upgrade"
    sed -i 's/^#max_log_line_size = .*/max_log_line_size = 8192/' /etc/crisp/crisp.toml
    n=$(lines)
    install_deb "$next"
    check "the new daemon runs" ready
    check "it is the new version" same "$(crisp --version)" "crisp, version $(dpkg-deb -f "$next" Version)"
    check "the administrator's configuration is kept" grep -q '^max_log_line_size = 8192' /etc/crisp/crisp.toml
    check "the containers live" alive "$pid"
    check "the log was written meanwhile" test "$(lines)" -gt "$n"
    check "exec by the old shim" same "$(pods exec "$container" 'echo old shim')" "old shim"
    read -r pod2 container2 pid2 < <(pods run $parent 'exec sleep 100000')
    check "a new container beside it" same "$(pods exec "$container2" 'echo new shim')" "new shim"
    pods remove "$pod2"
    check "removed again" test ! -e "/proc/$pid2"
fi
check "stop, with the container's own exit code" same "$(pods stop "$container")" 7
pods remove "$pod"
pods remove "${own%% *}"
slices() { systemctl list-units --all --plain --no-legend 'crisp-*'; }
check "systemd forgets what is gone" same "$(slices)" ""
own=$(pods run "" 'sleep 100000')
read -r _ own_container own_pid <<<"$own"

say "remove"
read -r pod container pid < <(pods run $parent 'trap "exit 7" TERM; while :; do sleep 0.2; done')
dpkg -r crisp
systemctl stop kubepods.slice # as the kubelet does, whose they are
check "the pods have ended" test ! -e "/proc/$pid" -a ! -e "/proc/$own_pid"
check "the data is kept" test -e /var/lib/crisp/state.db -a -d /var/lib/crisp/layers
check "nothing else is left" settled '^/(var/lib/(crisp|dpkg|systemd)|var/log/pods|etc/(crisp|systemd)|run/systemd)'
check "no cgroup, no slice" settled '^/(var|etc|run|usr)'

say "install again"
install_deb "$deb"
if [ -n "$next" ]; then
    check "the older version refuses the newer one's data" grep -q 'newer crisp has used it' \
        <(for _ in $(seq 100); do journalctl -u crisp.service | grep -m1 'newer crisp' && break; sleep 0.2; done)
    install_deb "$next"
    for _ in $(seq 300); do ready >/dev/null 2>&1 && break; sleep 0.2; done
fi
check "the daemon runs" ready
check "the image is still there" grep -q busybox <(crisp image ls)

say "purge"
dpkg -P crisp
rm -rf /var/log/pods
check "nothing is left" settled '^/var/lib/(dpkg|systemd)'
for path in /var/lib/crisp /run/crisp /etc/crisp /usr/lib/crisp /usr/bin/crisp; do check "no $path" gone $path; done

echo
[ $failures = 0 ] && echo "all is well" || echo "$failures checks failed"
rm -rf "$work"
exit $((failures > 0))
