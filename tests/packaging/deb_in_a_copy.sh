#!/bin/sh
# usage: deb_in_a_copy.sh PACKAGE.deb DIRECTORY NAME
# Installs, runs, removes and purges the package in a copy of this machine: an overlay over its root, in a mount namespace,
# without systemd. cgroups are the machine's own, so those of the daemon are called NAME. Leaves nothing but DIRECTORY.
set -eu
if [ "${1:-}" != inside ]; then
    mkdir -p "$2/upper" "$2/work" "$2/copy"
    exec unshare --mount --propagation private "$0" inside "$@"
fi
deb=$2 directory=$3 name=$4
copy=$directory/copy
mount -t overlay overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" "$copy"
for place in proc sys dev; do mount --rbind "/$place" "$copy/$place"; done
for place in run tmp var/tmp; do mount -t tmpfs tmpfs "$copy/$place"; done
# Layers cannot lie on an overlay. This is a disk of its own for the data, too, as many nodes have it.
mkdir -p "$copy/var/lib/crisp"
mount -t tmpfs tmpfs "$copy/var/lib/crisp"
cp "$deb" "$copy/tmp/crisp.deb"
mkdir -p "$copy/tmp/root/bin" "$copy/tmp/root/proc" "$copy/tmp/root/dev"
cp /bin/busybox "$copy/tmp/root/bin/sh"
chmod -R a+rX "$copy/tmp/root"

exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin NAME="$name" chroot "$copy" sh -eux <<'INSIDE'
files() { find /etc /usr /var -xdev -iname '*crisp*' -not -path '/var/lib/dpkg/*' -not -path '/usr/lib/python3*' | sort; }
files >/tmp/before
dpkg -i --force-unsafe-io /tmp/crisp.deb
crisp --version
test "$(stat -c %a /usr/bin/crisp)" = 755
grep -q '^#max_log_line_size' /etc/crisp/crisp.toml
sed -i "s|^#parent = .*|parent = \"/$NAME\"|; s|^#shims = .*|shims = \"/$NAME-shims\"|; s|^#bridge = .*|bridge = \"crispdeb\"|" /etc/crisp/crisp.toml
cd /
crisp serve >/tmp/log 2>&1 &
daemon=$!
for _ in $(seq 300); do crisp ps >/dev/null 2>&1 && break; kill -0 $daemon; sleep 0.1; done
crisp run --rootfs /tmp/root -- /bin/sh -c 'echo hello' | grep -x hello
crisp image add-rootfs localhost/kept:1 /tmp/root
crisp run --rootfs /tmp/root -- /bin/sh -c 'trap "exit 0" TERM; echo begun; while :; do sleep 0.1; done' >/tmp/begun 2>&1 &
client=$!
for _ in $(seq 300); do grep -qx begun /tmp/begun && break; sleep 0.1; done
grep -qx begun /tmp/begun

# No file of the package has changed by being used, none was written beside them; the configuration is the test's.
dpkg --verify crisp | grep -v ' c /etc/crisp/crisp.toml' >/tmp/changed || true
test ! -s /tmp/changed
dpkg -L crisp | grep '^/usr/lib/crisp/' | sort >/tmp/listed
find /usr/lib/crisp -mindepth 1 | sort | diff /tmp/listed -

kill $daemon
wait $daemon
dpkg -r crisp >/tmp/removal
grep -q '^removed  container' /tmp/removal
test ! -e /usr/lib/crisp -a ! -e /usr/bin/crisp -a ! -e /run/crisp
test -d /var/lib/crisp/layers -a -e /etc/crisp/crisp.toml

dpkg -i --force-unsafe-io /tmp/crisp.deb
crisp serve >>/tmp/log 2>&1 &
daemon=$!
for _ in $(seq 300); do crisp ps >/dev/null 2>&1 && break; kill -0 $daemon; sleep 0.1; done
crisp image ls | grep -q localhost/kept
kill $daemon
wait $daemon
dpkg -P crisp
kill $client 2>/dev/null || true # it waits for another daemon to come
wait $client || true
files | diff /tmp/before -
test -z "$(ls -A /var/lib/crisp)"
INSIDE
